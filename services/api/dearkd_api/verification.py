"""What is served is what its manifest says: each stored version of a file is hashed once, before it is sent."""

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
"""Versions of files whose hash is kept in memory, about 300 bytes each; the one unused for longest is dropped."""
AT_ONCE = 2
"""Files that are hashed at the same time; each takes a core. Others wait, but hold no thread meanwhile."""
CHUNK_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class ServedFile:
    """An object in storage, and what the manifest says of it, where one does."""

    key: str
    listed: StoredFile | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """Knows which stored versions have which hash. A version that changes on disk is another, and is read again."""

    storage: Storage
    _digests: OrderedDict[Hashable, str] = field(default_factory=OrderedDict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    """Of a file, so that those who ask for it at once have it hashed once."""
    _limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(AT_ONCE))

    async def require(self, file: ServedFile) -> None:
        """Return once the file is known to be as listed; what no manifest describes is taken as it is.

        Raises:
            NotFound: if it is gone.
            CorruptData: if its size or its bytes are others.
        """
        if file.listed is None or await anyio.to_thread.run_sync(self._is_known, file.key, file.listed):
            return
        # Kept by those who wait for it, and gone with the last.
        turn = self._turns.setdefault(file.key, asyncio.Lock())
        async with turn:
            await anyio.to_thread.run_sync(self._hash, file.key, file.listed, limiter=self._limiter)

    def _is_known(self, key: str, listed: StoredFile) -> bool:
        """Whether this version was hashed before, and to the right digest. Raises as `require` does."""
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
