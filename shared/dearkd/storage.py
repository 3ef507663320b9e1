"""Object storage: `file://` and `s3://` alike, through obstore.

Keys are relative, `/`-separated paths under the storage root. What is here is immutable once written; a manifest is
written last and with `create`, so that exactly one writer wins and a reader never sees half a thing.
"""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, S3Store

from dearkd.errors import Conflict, CorruptData, DiskFull, InvalidInput, NotFound, Unavailable
from dearkd.identifiers import new_id
from dearkd.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig

Data = bytes | Path | Iterator[bytes]

REQUEST_SECONDS = 30.0
"""For a request to a bucket and its answer, on top of the time that its bytes need."""
SLOWEST_BYTES_PER_SECOND = 2**20
"""An upload over a slower connection than this is given up and tried again: our choice [R]."""
SILENCE_SECONDS = 60.0
"""A download of which nothing comes for so long is given up; as a whole it may take a day."""
MAX_PUT_BYTES = 5 * 2**30
"""S3 takes no more in one request."""


MAX_KEY_BYTES = 900
"""In UTF-8; S3 takes 1024, of which the storage root may use some."""
MAX_SEGMENT_BYTES = 255
"""In UTF-8; no file system takes a longer name."""


class AlreadyExists(Conflict):
    default_code = "already_exists"


@dataclass(frozen=True, slots=True)
class StoredObject:
    key: str
    size: int
    modified: datetime
    """When it was written, with its zone."""


class Storage:
    """One root, local or in a bucket.

    Every method raises `Unavailable` when the store cannot be reached or refuses its credentials, and `NotFound` for a
    key that does not exist.
    """

    def __init__(self, connect: Callable[..., LocalStore | S3Store]) -> None:
        """`connect` makes the store; a bucket's takes time limits, as obstore's client options."""
        self._connect = connect
        self._store = connect()
        # obstore's limit is for a request as a whole, which 30 s are too little for.
        self._downloads = connect(timeout=timedelta(days=1), read_timeout=timedelta(seconds=SILENCE_SECONDS))

    @classmethod
    def open(cls, settings: Settings) -> "Storage":
        """The storage that `DEARKD_STORAGE_URL` names; a local root is made if it does not exist.

        Raises:
            InvalidInput: if the URL is of another scheme or names no bucket.
        """
        if settings.storage_url.startswith("file://"):
            # The rest is a path as it stands, not percent-encoded: `file://./data` is relative, `#` is a character.
            root = Path(settings.storage_url.removeprefix("file://")).absolute()
            store = LocalStore(prefix=root, mkdir=True)
            return cls(lambda **limits: store)
        url = urlsplit(settings.storage_url)
        if url.scheme == "s3" and url.netloc:
            return cls(partial(_bucket, url.netloc, url.path.strip("/") or None, settings))
        raise InvalidInput(
            f"DEARKD_STORAGE_URL is {settings.storage_url!r}: use file:///absolute/path, file://./relative/path "
            "or s3://bucket/prefix"
        )

    @property
    def is_local(self) -> bool:
        return isinstance(self._store, LocalStore)

    def put(self, key: str, data: Data) -> None:
        """Write or overwrite; for what may change: previews, progress, temporary objects.

        To a bucket in one request, which leaves nothing behind if this process is killed meanwhile; but in parts what
        is a stream, or more than S3 takes at once.
        """
        size = None if isinstance(data, Iterator) else _size(data)
        with _errors(key):
            if self.is_local or size is None or size > MAX_PUT_BYTES:
                obstore.put(self._store, key, data)
            else:
                obstore.put(self._for_upload(size), key, data, use_multipart=False)

    def create(self, key: str, data: bytes | Path) -> None:
        """Write only if nothing is there, in one request.

        Raises:
            AlreadyExists: if the key exists; nothing was written.
        """
        with _errors(key):
            obstore.put(self._for_upload(_size(data)), key, data, mode="create", use_multipart=False)

    def read(self, key: str) -> bytes:
        with _errors(key):
            return bytes(obstore.get(self._store, key).bytes())

    def stream(self, key: str, *, start: int = 0, end: int | None = None, chunk_bytes: int = 2**20) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive). The first chunk is asked for before this returns, so errors come here."""
        with _errors(key):
            if start or end is not None:
                stop = self.size(key) if end is None else end
                result = obstore.get(self._downloads, key, options={"range": (start, stop)})
            else:
                result = obstore.get(self._downloads, key)
            chunks = iter(result.stream(min_chunk_size=chunk_bytes))
        return _guarded(key, chunks)

    def size(self, key: str) -> int:
        with _errors(key):
            return int(obstore.head(self._store, key)["size"])

    def version(self, key: str) -> tuple[int, tuple[object, ...]]:
        """The size of an object, and what changes whenever it is written anew: its ETag and time.

        On a local store also the time of the last change of the file itself, which no program can set.
        """
        with _errors(key):
            found = obstore.head(self._store, key)
        changed = None
        if isinstance(self._store, LocalStore) and self._store.prefix is not None:
            with suppress(OSError):
                changed = (Path(self._store.prefix) / key).stat().st_ctime_ns
        return int(found["size"]), (found["e_tag"], found["version"], found["last_modified"], changed)

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """All objects under a prefix (a whole path segment), sorted by key.

        Raises:
            CorruptData: if a name there is none that a key can have.
        """
        found: list[StoredObject] = []
        with _errors(prefix):
            for page in obstore.list(self._store, prefix):
                found += [StoredObject(str(e["path"]), int(e["size"]), e["last_modified"]) for e in page]
        return iter(sorted(found, key=lambda stored: stored.key))

    def children(self, prefix: str) -> list[str]:
        """Names one level below a prefix that have objects under them, sorted."""
        with _errors(prefix):
            listing = obstore.list_with_delimiter(self._store, prefix)
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in listing["common_prefixes"])

    def delete(self, key: str) -> None:
        """Delete an object; one that does not exist is no error."""
        try:
            with _errors(key):
                obstore.delete(self._store, key)
        except NotFound:
            return

    def delete_prefix(self, prefix: str) -> None:
        for stored in self.objects(prefix):
            self.delete(stored.key)
        if isinstance(self._store, LocalStore) and self._store.prefix is not None:
            _remove_empty_folders(Path(self._store.prefix) / prefix)

    def leftovers(self) -> Iterator[StoredObject]:
        """What writes that never ended left on a local store: obstore writes to `key#1` and renames that.

        A bucket keeps such parts out of sight; a lifecycle rule removes them (AbortIncompleteMultipartUpload).
        """
        if not isinstance(self._store, LocalStore) or self._store.prefix is None:
            return
        root = Path(self._store.prefix)
        for path in sorted(root.rglob("*#*")):
            if re.fullmatch(r".+#\d+", path.name) and path.is_file():
                found = path.stat()
                yield StoredObject(
                    path.relative_to(root).as_posix(), found.st_size, datetime.fromtimestamp(found.st_mtime, UTC)
                )

    def delete_leftover(self, stored: StoredObject) -> None:
        """Delete one of `leftovers`, which no other method sees."""
        if isinstance(self._store, LocalStore) and self._store.prefix is not None:
            (Path(self._store.prefix) / stored.key).unlink(missing_ok=True)

    def copy(self, source: str, target: str) -> None:
        with _errors(source):
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
        if isinstance(self._store, LocalStore):
            return None
        with _errors(key):
            return obstore.sign(self._store, "GET", key, timedelta(seconds=seconds))

    def ping(self) -> None:
        """Raises `Unavailable` if the root cannot be listed."""
        with _errors(""):
            obstore.list_with_delimiter(self._store, "teachers")

    def _for_upload(self, size: int) -> LocalStore | S3Store:
        """The store, or one that waits as long as so many bytes may need."""
        seconds = size / SLOWEST_BYTES_PER_SECOND
        return self._store if seconds < 1 else self._connect(timeout=timedelta(seconds=REQUEST_SECONDS + seconds))


def _bucket(name: str, prefix: str | None, settings: Settings, **limits: timedelta) -> S3Store:
    client: ClientConfig = {
        "allow_http": (settings.s3_endpoint or "").startswith("http://"),
        "connect_timeout": timedelta(seconds=5),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
    }
    client.update(cast("ClientConfig", limits))
    return S3Store(
        name,
        prefix=prefix,
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        virtual_hosted_style_request=False,
        client_options=client,
        # Long enough for a hiccup; an outage is the caller's to wait out, and a request's to report.
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=20)},
    )


def _size(data: bytes | Path) -> int:
    return data.stat().st_size if isinstance(data, Path) else len(data)


def check_key(key: str, *, pointer: str) -> str:
    """A key or prefix that came from outside, without surrounding slashes.

    Raises:
        InvalidInput: if it is a URL, absolute, too long as a whole or in a segment, has empty or dotted segments, or
            odd characters.
    """
    text = key.strip("/")
    segments = text.split("/")
    if key.startswith("/") or "://" in key or any(s in ("", ".", "..") for s in segments):
        raise InvalidInput.at(
            pointer, f"{key!r:.200} is no key under the storage root: use names joined by single slashes"
        )
    if not text.isprintable() or "\\" in text:
        raise InvalidInput.at(
            pointer, f"{key!r:.200} holds characters that a key may not have: control characters or a backslash"
        )
    if (size := len(text.encode())) > MAX_KEY_BYTES:
        raise InvalidInput.at(pointer, f"{key!r:.200} has {size} bytes; a key has {MAX_KEY_BYTES} at most")
    for segment in segments:
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            raise InvalidInput.at(
                pointer,
                f"{segment!r:.200} has {len(segment.encode())} bytes; a name between slashes has {MAX_SEGMENT_BYTES} "
                "at most, as file systems have it",
            )
    return text


@contextmanager
def _errors(key: str) -> Iterator[None]:
    try:
        yield
    except AlreadyExistsError:
        raise AlreadyExists(f"{key} exists already in storage") from None
    except (NotFoundError, FileNotFoundError):
        raise NotFound(f"{key} is not in storage") from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise Unavailable(
            f"storage refused its credentials for {key}: {error}; check the keys and DEARKD_STORAGE_URL",
            code="storage_unavailable",
        ) from error
    except (BaseError, NotSupportedError, OSError) as error:
        if isinstance(error, InvalidPathError) or "File system loop found" in str(error):
            raise CorruptData(
                f"under {key!r} in storage lies what has no key, a name that is not UTF-8 or a link to a folder above: "
                "rename or remove it"
            ) from None
        if is_disk_full(error):
            raise DiskFull(f"storage has no room for {key} ({error}): make room and retry") from error
        raise Unavailable(
            f"storage failed on {key}: {error}; check DEARKD_STORAGE_URL and the store itself",
            code="storage_unavailable",
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of the operating system, or of the store, says that no room is left."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


def _guarded(key: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        with _errors(key):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield bytes(chunk)


def _remove_empty_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            continue  # not empty: somebody else's objects lie there
