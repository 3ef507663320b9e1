"""Storage roots: a folder of this machine, or a bucket and what its keys begin with."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import LocalStore

from dearkd.addresses import StorageAddress
from dearkd.errors import NotFound, Unavailable
from dearkd.folders import private_folder
from dearkd.settings import Settings
from dearkd.storage import marker
from dearkd.storage.object_stores import BucketStore, errors_told, open_bucket

SILENCE_SECONDS = 60.0
"""A download of which nothing comes for so long is given up; as a whole it may take a day."""


class FolderRoot:
    """A folder, looked at before every step: a disk may be gone at any time, and looking costs some microseconds."""

    trust_seconds = 0.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store: LocalStore | None = None

    def store(self, **limits: timedelta) -> LocalStore:
        """Raises FileNotFoundError if there is no such folder: it is made with its marker."""
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


class BucketRoot:
    """A bucket, looked at every few seconds, and whenever something is missing in it."""

    trust_seconds = 5.0

    def __init__(self, address: StorageAddress, settings: Settings) -> None:
        """Raises InvalidInput if the environment lacks what the store needs."""
        self._address, self._settings = address, settings
        self._store = open_bucket(address, settings)
        # obstore's limit is for a request as a whole, which 30 s are too little for.
        self._downloads = self.store(timeout=timedelta(days=1), read_timeout=timedelta(seconds=SILENCE_SECONDS))

    def store(self, **limits: timedelta) -> BucketStore:
        """The store; with `limits`, as obstore's client options, one of its own."""
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
        with self._there(), errors_told(marker.KEY):
            obstore.put(self._store, marker.KEY, data, mode="create", use_multipart=False)

    def entries(self) -> list[str]:
        with self._there(), errors_told("the root"):
            listing = obstore.list_with_delimiter(self._store)
        found = [str(path) for path in listing["common_prefixes"]] + [str(o["path"]) for o in listing["objects"]]
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    @contextmanager
    def _there(self) -> Iterator[None]:
        """What is not found when nothing is looked for is the bucket itself."""
        try:
            yield
        except NotFound:
            raise Unavailable(
                f"storage cannot be used: there is no bucket {self._address.bucket!r}: make it, or mend "
                "DEARKD_STORAGE_URL",
                code="storage_unavailable",
            ) from None
