"""A dataset that is read once, from its first sample to its last: each shard comes, is read and is let go."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dearkd.data.shard_files import Shard
from dearkd.errors import CorruptData
from dearkd.storage.file_cache import FileCache
from dearkd.vision.shards import Indices, ShardDataset, index_shard
from dearkd.vision.stored_shards import HeldShards


class PassingShards(ShardDataset):
    """The samples of shards that need not fit on this machine, for one pass in their order.

    How many samples there are, and in which shard, is known by the manifest. Their labels and images are known from
    when `hold` has come to their shard: a label before that is -1. `StoredShards`, which must know all labels first,
    fetches every shard once more for them.

    Args:
        shards: by the manifest of the dataset.
        obtain: fetches a shard into a cache, verified (`FileCache.obtain`), whichever thread calls it.
        open_cache: gives a cache for one shard, which is closed when the shard is let go.
        num_classes, in_chans: as of `ShardDataset`.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        obtain: Callable[[Shard, FileCache], Path],
        open_cache: Callable[[], FileCache],
        *,
        num_classes: int,
        in_chans: Literal[1, 3],
    ) -> None:
        super().__init__((), num_classes=num_classes, in_chans=in_chans)
        self._manifest = tuple(shards)
        self._obtain, self._open_cache = obtain, open_cache
        cache = open_cache()
        self._paths = [cache.place(name=shard.name, sha256=shard.sha256) for shard in shards]
        counts = [shard.samples for shard in shards]
        self._ends = np.cumsum(counts, dtype=np.int64)
        total = sum(counts)
        self.shards = np.repeat(np.arange(len(counts)), counts)
        self.labels = np.full(total, -1)
        self._keys = np.full(total, b"", dtype=object)
        self._offsets, self._sizes, self._logits_offsets, self._logits_sizes = np.zeros((4, total), dtype=np.int64)
        # Two while one is read and the next arrives, where there is room for both.
        largest = sorted((shard.bytes for shard in shards), reverse=True)[:2]
        self._max_shards = 2 if sum(largest) <= cache.max_bytes else 1

    def hold(self, batches: Iterable[Indices], *, max_shards: int = 2, workers: int = 0) -> HeldShards:
        """Keep the shards of each batch here while it is read. Close what is returned.

        Args:
            batches: sample numbers.
            max_shards: the most shards that are kept at a time; it is one where the cache has no room for two.
            workers: must be 0: a loader's processes would not learn what this one reads of the shards.

        Raises:
            ValueError: if there are workers.
        """
        if workers:
            raise ValueError(f"{workers} loader workers: shards that pass are read by one process")
        shards = (set(self.shards[batch].tolist()) for batch in batches)
        return HeldShards(self._fetch, shards, max_shards=min(max_shards, self._max_shards), behind=1)

    def fingerprint(self) -> str:
        """Raises `ValueError`: what it would be taken from is not known before the pass."""
        raise ValueError("shards that pass have no fingerprint: open them as StoredShards")

    def preload(self, max_bytes: int = 0) -> bool:
        """Decode nothing: the shards are not here."""
        return False

    def _fetch(self, number: int) -> FileCache:
        shard, cache = self._manifest[number], self._open_cache()
        try:
            keys, table = index_shard(self._obtain(shard, cache), self.num_classes)
            if len(keys) != shard.samples:
                raise CorruptData(
                    f"{shard.name} holds {len(keys)} samples, the manifest says {shard.samples}: add the dataset again"
                )
        except BaseException:
            cache.close()
            raise
        part = slice(int(self._ends[number]) - shard.samples, int(self._ends[number]))
        columns = (self.labels, self._offsets, self._sizes, self._logits_offsets, self._logits_sizes)
        for column, values in zip(columns, table, strict=True):
            column[part] = values
        self._keys[part] = keys
        return cache
