"""Storage roots: a folder of this machine, or a bucket and what its keys begin with."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import obstore
from obstore.store import LocalStore

from dearkd.addresses import StorageAddress
from dearkd.errors import NotFound, Unavailable
from dearkd.folders import private_folder
from dearkd.settings import Settings
from dearkd.storage import marker
from dearkd.storage.object_stores import BucketStore, ObjectStore, StoredObject, errors_told, open_bucket

SILENCE_SECONDS = 60.0
"""A download of which nothing comes for so long is given up; as a whole it may take a day."""


class Root(marker.Root, Protocol):
    """Everything in which a folder and a bucket differ."""

    is_local: bool

    def store(self, **limits: timedelta) -> ObjectStore:
        """The store; with `limits`, as obstore's client options, one of its own."""

    def store_for_downloads(self) -> ObjectStore:
        """The store, with time enough for an object of any size."""

    def changed_at(self, key: str) -> int | None:
        """The time of the last change of a file in ns, which no program can set; None where there is no such time."""

    def presign(self, key: str, duration: timedelta) -> str | None:
        """A URL from which an object can be fetched without credentials; None where there is no such."""

    def tidy(self, prefix: str) -> None:
        """Remove the folders that are empty now that objects under a prefix were deleted."""

    def leftovers(self) -> Iterator[StoredObject]:
        """The parts of writes that never ended, as objects."""

    def delete_leftover(self, stored: StoredObject) -> None: ...


class FolderRoot:
    """A folder, looked at before every step: a disk may be gone at any time, and looking costs some microseconds."""

    trust_seconds = 0.0
    is_local = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store: LocalStore | None = None

    def store(self, **limits: timedelta) -> LocalStore:
        """The store. Raises FileNotFoundError if there is no such folder: it is made with its marker."""
        if self._store is None:
            self.folder.stat()
            self._store = LocalStore(prefix=self.folder)
        return self._store

    def store_for_downloads(self) -> LocalStore:
        return self.store()

    def read_marker(self) -> bytes | None:
        try:
            with errors_told(marker.KEY):
                return (self.folder / marker.KEY).read_bytes()
        except NotFound:
            return None

    def create_marker(self, data: bytes) -> None:
        with errors_told(marker.KEY):
            private_folder(self.folder)
            obstore.put(self.store(), marker.KEY, data, mode="create")

    def entries(self) -> list[str]:
        try:
            with errors_told("the root"):
                return [path.name for path in self.folder.iterdir()]
        except NotFound:
            return []

    def changed_at(self, key: str) -> int | None:
        try:
            return (self.folder / key).stat().st_ctime_ns
        except OSError:
            return None

    def presign(self, key: str, duration: timedelta) -> None:
        return None

    def tidy(self, prefix: str) -> None:
        for folder, _, _ in os.walk(self.folder / prefix, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                continue  # not empty: somebody else's objects lie there

    def leftovers(self) -> Iterator[StoredObject]:
        """Find the files that obstore writes to, `key#1`, before it renames them."""
        for path in sorted(self.folder.rglob("*#*")):
            if re.fullmatch(r".+#\d+", path.name) and path.is_file():
                found = path.stat()
                modified = datetime.fromtimestamp(found.st_mtime, UTC)
                yield StoredObject(path.relative_to(self.folder).as_posix(), found.st_size, modified)

    def delete_leftover(self, stored: StoredObject) -> None:
        (self.folder / stored.key).unlink(missing_ok=True)


class BucketRoot:
    """A bucket, looked at every few seconds, and whenever something is missing in it.

    It keeps the parts of writes that never ended out of sight; a lifecycle rule removes them
    (AbortIncompleteMultipartUpload).
    """

    trust_seconds = 5.0
    is_local = False

    def __init__(self, address: StorageAddress, settings: Settings) -> None:
        """Open the store. Raises InvalidInput if the environment lacks what it needs."""
        self._address, self._settings = address, settings
        self._store = open_bucket(address, settings)
        # obstore's limit is for a request as a whole, which 30 s are too little for.
        self._downloads = self.store(timeout=timedelta(days=1), read_timeout=timedelta(seconds=SILENCE_SECONDS))

    def store(self, **limits: timedelta) -> BucketStore:
        return open_bucket(self._address, self._settings, **limits) if limits else self._store

    def store_for_downloads(self) -> BucketStore:
        return self._downloads

    def read_marker(self) -> bytes | None:
        try:
            with errors_told(marker.KEY):
                return bytes(obstore.get(self._store, marker.KEY).bytes())
        except NotFound:
            return None

    def create_marker(self, data: bytes) -> None:
        with self._missing_bucket_named(), errors_told(marker.KEY):
            obstore.put(self._store, marker.KEY, data, mode="create", use_multipart=False)

    def entries(self) -> list[str]:
        with self._missing_bucket_named(), errors_told("the root"):
            listing = obstore.list_with_delimiter(self._store)
        found = [str(path) for path in listing["common_prefixes"]] + [str(o["path"]) for o in listing["objects"]]
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def changed_at(self, key: str) -> None:
        return None

    def presign(self, key: str, duration: timedelta) -> str:
        return obstore.sign(self._store, "GET", key, duration)

    def tidy(self, prefix: str) -> None:
        """Do nothing: a bucket has no folders."""

    def leftovers(self) -> Iterator[StoredObject]:
        return iter(())

    def delete_leftover(self, stored: StoredObject) -> None:
        """Do nothing: it has none."""

    @contextmanager
    def _missing_bucket_named(self) -> Iterator[None]:
        """Say that the bucket is missing where something is not found although nothing was looked for."""
        try:
            yield
        except NotFound:
            raise Unavailable(
                f"storage cannot be used: there is no bucket {self._address.bucket!r}: make it, or mend "
                "DEARKD_STORAGE_URL",
                code="storage_unavailable",
            ) from None
