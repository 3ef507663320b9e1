"""Object storage: `file://` and `s3://` alike, through obstore.

Keys are relative, `/`-separated paths under the storage root. What is here is immutable once written; a manifest is
written last and with `create`, so that exactly one writer wins and a reader never sees half a thing.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import obstore

from dearkd.addresses import StorageAddress
from dearkd.errors import CorruptData, DearKDError, InvalidInput, NotFound
from dearkd.identifiers import new_id
from dearkd.latency import Observer, timed
from dearkd.redaction import without_credentials
from dearkd.redis_client import Redis
from dearkd.settings import Settings
from dearkd.storage.marker import KnownStorage, Marker
from dearkd.storage.object_stores import (
    REQUEST_SECONDS,
    AlreadyExists,
    ObjectStore,
    StoredObject,
    errors_told,
    is_disk_full,
)
from dearkd.storage.roots import BucketRoot, FolderRoot, Root

__all__ = ["AlreadyExists", "Storage", "StoredObject", "is_disk_full"]

T = TypeVar("T")
Data = bytes | Path | Iterator[bytes]

SLOWEST_BYTES_PER_SECOND = 2**20
"""An upload over a slower connection than this is given up and tried again: our choice [R]."""
MAX_PUT_BYTES = 5 * 2**30
"""S3 takes no more in one request."""
PROBE_BYTES = 2**16
"""The bytes that `ping` writes: more than a file system keeps in the entry of a folder."""
PROBE_SECONDS = 2.0
"""The time for which the answer of a `ping` is kept: anybody may ask for it."""


class Storage:
    """The objects under one root, a local folder or a bucket.

    Every method raises `Unavailable` when the store cannot be reached, refuses its credentials or is not the one that
    is known (`marker`), and `NotFound` for a key that does not exist.
    """

    def __init__(
        self, root: Root, known: KnownStorage | None = None, *, fresh: bool = True, observer: Observer | None = None
    ) -> None:
        self._root = root
        self._observer = observer
        self._marker = Marker(root, known, fresh=fresh)
        self._probing = threading.Lock()
        self._probed_until = 0.0
        self._probe_failure: DearKDError | None = None

    @classmethod
    def open(
        cls, settings: Settings, redis: Redis | None = None, *, fresh: bool = True, observer: Observer | None = None
    ) -> "Storage":
        """The storage that `DEARKD_STORAGE_URL` names; a root is made, with its marker, by the first write.

        Args:
            settings: of this process.
            redis: which remembers the storage; every part of a service gives it. Without one a root is believed to be
                the storage as long as it does not change.
            fresh: whether an empty root may become a storage; False for who comes after a service that has made it.
            observer: hears of each operation, by the name of its method; of a stream until its first bytes.

        Raises:
            InvalidInput: if the URL is of another scheme or names no bucket.
        """
        try:
            address = StorageAddress.parse(settings.storage_url)
        except ValueError as error:
            given = without_credentials(repr(settings.storage_url))
            raise InvalidInput(f"DEARKD_STORAGE_URL is {given}: {error}") from None
        known = KnownStorage(redis) if redis is not None else None
        if address.scheme == "file":
            return cls(FolderRoot(address.folder), known, fresh=fresh, observer=observer)
        return cls(BucketRoot(address, settings), known, fresh=fresh, observer=observer)

    @property
    def is_local(self) -> bool:
        return self._root.is_local

    @property
    def _store(self) -> ObjectStore:
        return self._root.store()

    @contextmanager
    def _proven(self, operation: str, key: str, *, writing: bool = False) -> Iterator[None]:
        """Prove first that this is the storage, and once more where the key is not there; tell errors as ours."""
        with timed(self._observer, operation):
            self._marker.prove(writing=writing)
            try:
                with errors_told(key):
                    yield
            except NotFound:
                self._marker.prove(again=True)
                raise

    def adopt(self) -> str:
        """Make this root the storage that Redis knows, whatever it knew before; returns the marker's id."""
        return self._marker.adopt()

    def put(self, key: str, data: Data) -> None:
        """Write or overwrite; for what may change: previews, progress, temporary objects.

        To a bucket in one request, which leaves nothing behind if this process is killed meanwhile; but in parts what
        is a stream, or more than S3 takes at once.
        """
        size = _size(data)
        with self._proven("put", key, writing=True):
            if self.is_local or size is None or size > MAX_PUT_BYTES:
                obstore.put(self._store, key, data)
            else:
                obstore.put(self._for_upload(size), key, data, use_multipart=False)

    def create(self, key: str, data: bytes | Path) -> None:
        """Write only if nothing is there, in one request.

        Raises:
            AlreadyExists: if the key exists; nothing was written.
        """
        with self._proven("create", key, writing=True):
            if not self.is_local:  # a file system's own links see to it
                self._marker.require_creates_once()
            obstore.put(self._for_upload(_size(data) or 0), key, data, mode="create", use_multipart=False)

    def create_or_adopt(self, key: str, data: bytes | Path, made: T, adopt: Callable[[], T]) -> T:
        """Create an object, or adopt the one that another writer was first to store: it stays as it is.

        Args:
            key: where it is to lie.
            data: to write.
            made: the description of `data`, returned where that was written.
            adopt: reads and checks the object that is there, and returns its description.
        """
        try:
            self.create(key, data)
        except AlreadyExists:
            return adopt()
        return made

    def read(self, key: str) -> bytes:
        with self._proven("read", key):
            return bytes(obstore.get(self._store, key).bytes())

    def stream(self, key: str, *, start: int = 0, end: int | None = None, chunk_bytes: int = 2**20) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive). The first chunk is asked for before this returns, so errors come here."""
        with self._proven("stream", key):
            if start or end is not None:
                stop = self.size(key) if end is None else end
                result = obstore.get(self._root.store_for_downloads(), key, options={"range": (start, stop)})
            else:
                result = obstore.get(self._root.store_for_downloads(), key)
            chunks = iter(result.stream(min_chunk_size=chunk_bytes))
        return _guarded(key, chunks)

    def size(self, key: str) -> int:
        with self._proven("size", key):
            return int(obstore.head(self._store, key)["size"])

    def version(self, key: str) -> tuple[int, tuple[object, ...]]:
        """The size of an object, and what changes whenever it is written anew: its ETag and time.

        On a local store also the time of the last change of the file itself, which no program can set.
        """
        with self._proven("version", key):
            found = obstore.head(self._store, key)
        marks = (found["e_tag"], found["version"], found["last_modified"], self._root.changed_at(key))
        return int(found["size"]), marks

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """All objects under a prefix (a whole path segment), sorted by key, each once.

        Some servers name an object twice: where pages overlap, or while it is being replaced. The newest counts.

        Raises:
            CorruptData: if a name there is none that a key can have.
        """
        found: list[StoredObject] = []
        try:
            with self._proven("list", prefix):
                for page in obstore.list(self._store, prefix):
                    found += [StoredObject(str(e["path"]), int(e["size"]), e["last_modified"]) for e in page]
        except NotFound:
            return iter([])  # nothing was ever written
        if not found:
            self._marker.prove(again=True)
        newest_last = sorted(found, key=lambda stored: (stored.key, stored.modified))
        return iter({stored.key: stored for stored in newest_last}.values())

    def children(self, prefix: str) -> list[str]:
        """Names one level below a prefix that have objects under them, sorted.

        A store that keeps folders may also name one whose objects were all deleted.
        """
        try:
            with self._proven("list", prefix):
                listing = obstore.list_with_delimiter(self._store, prefix)
        except NotFound:
            return []
        if not listing["common_prefixes"]:
            self._marker.prove(again=True)
        return sorted({str(path).rstrip("/").rpartition("/")[2] for path in listing["common_prefixes"]})

    def delete(self, key: str) -> None:
        """Delete an object; one that does not exist is no error."""
        try:
            with self._proven("delete", key):
                obstore.delete(self._store, key)
        except NotFound:
            return

    def delete_prefix(self, prefix: str) -> None:
        for stored in self.objects(prefix):
            self.delete(stored.key)
        self._root.tidy(prefix)

    def leftovers(self) -> Iterator[StoredObject]:
        """The parts of writes that never ended, which no other method sees. Only a folder shows any."""
        self._marker.prove()
        yield from self._root.leftovers()

    def delete_leftover(self, stored: StoredObject) -> None:
        self._marker.prove()
        self._root.delete_leftover(stored)

    def copy(self, source: str, target: str) -> None:
        with self._proven("copy", source, writing=True):
            obstore.copy(self._for_upload(self.size(source)), source, target)

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        """Fetch to a local file, whole or not at all.

        Raises:
            CorruptData: if `sha256` is given and the bytes have another; the file is not left there.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{new_id('tmp')}")
        digest = hashlib.sha256()
        try:
            with part.open("wb") as file:
                for chunk in self.stream(key, chunk_bytes=2**22):
                    digest.update(chunk)
                    file.write(chunk)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise CorruptData(
                    f"{key} has sha256 {digest.hexdigest()}, but its manifest says {sha256}: it was altered or "
                    "truncated in storage; restore it or make it again"
                )
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def presign(self, key: str, *, seconds: int = 3600) -> str | None:
        """A URL from which the object can be fetched without credentials; None on a local store, which has none."""
        with self._proven("presign", key):
            return self._root.presign(key, timedelta(seconds=seconds))

    def ping(self) -> None:
        """Write and delete a small object; the answer holds for a moment, however often it is asked for.

        Raises:
            DiskFull: if there is no room.
            Unavailable: if the root cannot be reached or written, or is not the storage that is known.
        """
        self._marker.prove(writing=True)
        with self._probing:
            if time.monotonic() >= self._probed_until:
                try:
                    self._probe_failure = None
                    self._probe()
                except DearKDError as error:
                    self._probe_failure = error
                self._probed_until = time.monotonic() + PROBE_SECONDS
            failure = self._probe_failure
        if failure is not None:
            raise failure

    def _probe(self) -> None:
        prefix = f"tmp/{new_id('tmp')}"
        try:
            self.put(f"{prefix}/probe", bytes(PROBE_BYTES if self.is_local else 1))
        finally:
            self.delete_prefix(prefix)

    def _for_upload(self, size: int) -> ObjectStore:
        """The store, or one that waits as long as so many bytes may need."""
        seconds = size / SLOWEST_BYTES_PER_SECOND
        if seconds < 1:
            return self._store
        return self._root.store(timeout=timedelta(seconds=REQUEST_SECONDS + seconds))


def _size(data: Data) -> int | None:
    """Bytes of what is to be written; None of a stream."""
    match data:
        case bytes():
            return len(data)
        case Path():
            return data.stat().st_size
    return None


def _guarded(key: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        with errors_told(key):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield bytes(chunk)
