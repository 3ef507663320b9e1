"""Verification of served files against their manifests: each stored version is hashed once, before it is sent."""

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread

from dearkd.errors import CorruptData, NotFound
from dearkd.storage.catalog import StoredFile
from dearkd.storage.objects import Storage

REMEMBERED = 100_000
"""File versions whose hash is kept in memory, about 300 bytes each; the one unused for longest is dropped."""
AT_ONCE = 2
"""Files hashed at the same time, each on a core. Others wait without holding a thread."""
CHUNK_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class ServedFile:
    """An object in storage, and its entry in a manifest; None if no manifest lists it."""

    key: str
    listed: StoredFile | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """Remembers the hash of each stored version. A file that changes is another version, and is hashed again."""

    storage: Storage
    _digests: OrderedDict[Hashable, str] = field(default_factory=OrderedDict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    """A lock for each file, by key, so that simultaneous requests have it hashed once."""
    _limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(AT_ONCE))

    async def require(self, file: ServedFile) -> None:
        """Return once the file is known to be as listed; a file that no manifest lists is not checked.

        Raises:
            NotFound: if it is gone.
            CorruptData: if its size or its bytes differ.
        """
        if file.listed is None or await anyio.to_thread.run_sync(self._is_known, file.key, file.listed):
            return
        # Kept by those who wait for it, and gone with the last.
        turn = self._turns.setdefault(file.key, asyncio.Lock())
        async with turn:
            await anyio.to_thread.run_sync(self._hash, file.key, file.listed, limiter=self._limiter)

    def _is_known(self, key: str, listed: StoredFile) -> bool:
        """True if this version was hashed before, to the right digest. Raises as `require` does."""
        try:
            size, version = self.storage.version(key)
        except NotFound:
            raise NotFound(f"{listed.name} is gone from storage, where it was {key}") from None
        if size != listed.bytes:
            raise _altered(key, f"{size} bytes", f"{listed.bytes}")
        with self._mutex:
            digest = self._digests.get((key, version))
            if digest is None:
                return False
            self._digests.move_to_end((key, version))
        if digest != listed.sha256:
            raise _altered(key, f"sha256 {digest}", listed.sha256)
        return True

    def _hash(self, key: str, listed: StoredFile) -> None:
        while not self._is_known(key, listed):  # or it was hashed while this request waited for its turn
            _, version = self.storage.version(key)
            digest = hashlib.sha256()
            for chunk in self.storage.stream(key, chunk_bytes=CHUNK_BYTES):
                digest.update(chunk)
            with self._mutex:
                self._digests[key, version] = digest.hexdigest()
                while len(self._digests) > REMEMBERED:
                    self._digests.popitem(last=False)


def _altered(key: str, found: str, listed: str) -> CorruptData:
    return CorruptData(
        f"{key} has {found}, but its manifest says {listed}: it was altered or cut short in storage; restore it from a "
        "backup, or make it again"
    )
