"""A stored dataset that need not fit on this machine: a shard lies in the cache, verified, while it is needed."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from dearkd.data.manifests import DatasetManifest, fetch_shard
from dearkd.errors import DiskFull, Unavailable
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision.shards import Held, Indices, ShardDataset

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""An outage of storage is waited out for so long [our choice]; then a run goes back, to its last checkpoint."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 30.0
PREFETCH = 2
"""Batches that torch's DataLoader asks for ahead, for each of its workers."""


class HeldShards(Held):
    """The shards of some batches, in order. A thread fetches those ahead; those behind are let go.

    Args:
        hold: fetches a shard, into a cache of its own.
        batches: the different shards of each.
        max_shards: the most shards held at a time; a batch that has more of them is held all the same.
        behind: a batch's shards are held until this many batches, counted from itself, have been asked for.
    """

    def __init__(
        self, hold: Callable[[int], FileCache], batches: Iterable[Collection[int]], *, max_shards: int, behind: int
    ) -> None:
        self._hold = hold
        self._coming = iter(batches)
        self._next = next(self._coming, None)
        self._max_shards, self._behind = max_shards, behind
        self._ahead: deque[Collection[int]] = deque()
        self._passed: deque[Collection[int]] = deque()
        self._uses: Counter[int] = Counter()
        """The batches, ahead and passed, that use each held shard."""
        self._held: dict[int, Future[FileCache]] = {}
        self._over: Future[Any] = Future()
        self._lock = threading.Lock()
        self._fetcher = ThreadPoolExecutor(1, "shards")

    def __next__(self) -> None:
        """Wait for the shards of the next batch.

        Raises:
            CorruptData: naming a shard that is not what the manifest says, or gone.
            Unavailable: if storage stays away.
            CancelledError: if this is closed meanwhile.
        """
        with self._lock:
            if self._over.done():
                raise CancelledError
            while len(self._passed) >= self._behind:
                self._drop(self._passed.popleft())
            while self._next is not None and (not self._ahead or self._fits(self._next)):
                self._take(self._next)
            if not self._ahead:
                raise StopIteration
            batch = self._ahead.popleft()
            self._passed.append(batch)
            wanted = [self._held[shard] for shard in batch]
        for shard in wanted:
            wait((shard, self._over), return_when=FIRST_COMPLETED)
            if self._over.done():
                raise CancelledError
            shard.result()

    def close(self) -> None:
        """Let all shards go; a download that has begun goes on to its end, for which nobody waits."""
        with self._lock:
            if not self._over.done():
                self._over.set_result(None)
            self._fetcher.shutdown(wait=False, cancel_futures=True)
            while self._held:
                self._held.popitem()[1].add_done_callback(_let_go)

    def _fits(self, shards: Collection[int]) -> bool:
        return len(self._held) + sum(shard not in self._held for shard in shards) <= self._max_shards

    def _take(self, shards: Collection[int]) -> None:
        for shard in shards:
            if shard not in self._held:
                self._held[shard] = self._fetcher.submit(self._fetch, shard)
        self._uses.update(shards)
        self._ahead.append(shards)
        self._next = next(self._coming, None)

    def _drop(self, shards: Collection[int]) -> None:
        for shard in shards:
            self._uses[shard] -= 1
            if not self._uses[shard]:
                del self._uses[shard]
                self._held.pop(shard).add_done_callback(_let_go)

    def _fetch(self, shard: int) -> FileCache:
        pause, until = FIRST_PAUSE_SECONDS, time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._hold(shard)
            except DiskFull:
                raise
            except Unavailable as error:
                if self._over.done() or time.monotonic() > until:  # who has closed it has closed the connection too
                    raise
                log.warning("reading ahead waits for storage: %s", error)
            if wait((self._over,), timeout=pause).done:
                raise CancelledError
            pause = min(2 * pause, MAX_PAUSE_SECONDS)


def _let_go(shard: Future[FileCache]) -> None:
    if not shard.cancelled() and shard.exception() is None:
        shard.result().close()


class StoredShards(ShardDataset):
    """The samples of a stored dataset. Each shard is fetched once for its index, and then whenever it is needed.

    A sample may be read while `hold` has come to its batch, by this process or by those that it makes for loading.

    Args:
        storage: where the shards are.
        manifest: of the dataset.
        open_cache: gives a cache for one shard, which is closed when the shard is let go.
        num_classes, in_chans: as of `ShardDataset`.
        check: called before each shard is indexed; what it raises ends that.

    Raises:
        CorruptData: naming the shard that is gone, altered, or none.
        Unavailable: if storage stays away.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: DatasetManifest,
        open_cache: Callable[[], FileCache],
        *,
        num_classes: int,
        in_chans: Literal[1, 3],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage: Storage | None = storage
        self._manifest = manifest
        self._open_cache: Callable[[], FileCache] | None = open_cache
        super().__init__(self._one_by_one(open_cache(), check), num_classes=num_classes, in_chans=in_chans)

    def hold(self, batches: Iterable[Indices], *, max_shards: int = 2, workers: int = 0) -> HeldShards:
        shards = (set(self.shards[batch].tolist()) for batch in batches)
        return HeldShards(self._fetch, shards, max_shards=max_shards, behind=max(1, PREFETCH * workers))

    def preload(self, max_bytes: int = 0) -> bool:
        """Decode nothing: not even the image files fit on this machine."""
        return False

    def __getstate__(self) -> dict[str, Any]:
        """The state for a loader's process, which reads the shards that this one holds and fetches none itself."""
        return {**self.__dict__, "_storage": None, "_open_cache": None}

    def _one_by_one(self, cache: FileCache, check: Callable[[], None]) -> Iterator[Path]:
        each = ((number,) for number in range(len(self._manifest.shards)))
        with closing(HeldShards(self._fetch, each, max_shards=2, behind=1)) as held:
            for shard in self._manifest.shards:
                check()
                next(held)
                yield cache.place(name=shard.name, sha256=shard.sha256)

    def _fetch(self, number: int) -> FileCache:
        assert self._storage is not None
        assert self._open_cache is not None
        cache = self._open_cache()
        fetch_shard(self._storage, self._manifest, self._manifest.shards[number], cache)
        return cache
