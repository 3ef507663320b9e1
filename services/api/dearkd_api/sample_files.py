"""The samples of stored shards, for who looks at them: read from verified local copies, of which a few stay open."""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from dearkd.data.manifests import DatasetManifest, fetch_shard
from dearkd.data.shard_files import Shard
from dearkd.data.shard_reader import Reader, Record, Span
from dearkd.errors import CorruptData, NotFound, TooLarge
from dearkd.settings import Settings
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage

OPEN_SHARDS: Final = 8
"""Shards that stay open; the one unused for longest is closed."""
MAX_SHARD_BYTES: Final = 2**30
MAX_SAMPLES: Final = 200_000
"""The most samples of a shard that is shown: what is known of each takes about 500 bytes of memory."""
OPEN_SAMPLES: Final = 2 * MAX_SAMPLES
"""The most samples of all shards that stay open, so that two of the largest can be looked at beside each other."""
MAX_IMAGE_BYTES: Final = 32 * 2**20
MAX_FIELDS_BYTES: Final = 64 * 2**10

_SIGNATURES: Final = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file, and its type as its first bytes say it."""

    data: bytes
    media_type: str


@dataclass(slots=True)
class _OpenShard:
    """A local copy of a shard, and the places of its samples."""

    samples: int
    turn: threading.Lock = field(default_factory=threading.Lock)
    cache: FileCache | None = None
    file: int = -1
    records: dict[str, Record] = field(default_factory=dict)
    labelled: dict[int, list[str]] = field(default_factory=dict)

    def open(self, storage: Storage, dataset: DatasetManifest, shard: Shard, settings: Settings) -> None:
        self.records, self.labelled = {}, {}
        cache = FileCache(settings.cache_dir, settings.cache_bytes)
        try:
            path = fetch_shard(storage, dataset, shard, cache)
            for record in Reader(path):
                self.records[record.key] = record
                self.labelled.setdefault(record.label, []).append(record.key)
            self.file = os.open(path, os.O_RDONLY)
        except BaseException:
            cache.close()
            raise
        self.cache = cache

    def read(self, span: Span, most: int) -> bytes:
        if span.size > most:
            raise TooLarge(f"it has {span.size} bytes; at most {most} are shown")
        return os.pread(self.file, span.size, span.offset)

    def close(self) -> None:
        """Let the copy go; only who has the turn may."""
        if self.cache is not None:
            os.close(self.file)
            self.cache.close()
            self.cache = None


class SampleFiles:
    """The samples of datasets, by shard and key. Usable from several threads.

    Args:
        storage: where the shards are.
        settings: name the folder of local copies, and its bound.
    """

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self._storage = storage
        self._settings = settings
        self._open: OrderedDict[Hashable, _OpenShard] = OrderedDict()
        self._mutex = threading.Lock()

    def keys(self, dataset: DatasetManifest, shard: int, label: int | None = None) -> list[str]:
        """The keys of a shard's samples, or of those of one class, in its order. Raises as `picture` does."""
        with self._opened(dataset, shard) as held:
            return [*held.records] if label is None else [*held.labelled.get(label, ())]

    def picture(self, dataset: DatasetManifest, shard: int, key: str) -> Picture:
        """The image of a sample.

        Raises:
            NotFound: if there is no such shard or sample.
            CorruptData: if the shard is not what the manifest says, or its image is no PNG, JPEG or WebP.
            TooLarge: if it is too large to be shown.
        """
        with self._opened(dataset, shard) as held:
            data = held.read(self._record(held, dataset, shard, key).image, MAX_IMAGE_BYTES)
        media_type = _media_type(data)
        if media_type is None:
            raise CorruptData(f"{dataset.shards[shard].name}: sample {key!r:.200} is no PNG, JPEG or WebP image")
        return Picture(data, media_type)

    def sample(self, dataset: DatasetManifest, shard: int, key: str) -> tuple[int, dict[str, Any]]:
        """The label of a sample, and the figures that its shard has of it. Raises as `picture` does."""
        with self._opened(dataset, shard) as held:
            record = self._record(held, dataset, shard, key)
            text = held.read(record.fields, MAX_FIELDS_BYTES) if record.fields else b"{}"
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = {}
        return record.label, found if isinstance(found, dict) else {}

    @contextmanager
    def _opened(self, dataset: DatasetManifest, index: int) -> Iterator[_OpenShard]:
        """A shard, opened by the first who needs it, for one thread at a time."""
        shard = _shown(dataset, index)
        name = (dataset.prefix, shard.name, shard.sha256)
        with self._mutex:
            held = self._open.setdefault(name, _OpenShard(shard.samples))
            self._open.move_to_end(name)
            unused = [*self._forgotten()]
        for one in unused:
            with one.turn:
                one.close()
        with held.turn:
            try:
                if held.cache is None:
                    held.open(self._storage, dataset, shard, self._settings)
                yield held
            finally:
                with self._mutex:
                    forgotten = self._open.get(name) is not held  # it made room for others meanwhile
                if forgotten:
                    held.close()

    def _forgotten(self) -> Iterator[_OpenShard]:
        """Forget the shards that were unused for longest, until no more stay open than may."""
        while len(self._open) > OPEN_SHARDS or sum(one.samples for one in self._open.values()) > OPEN_SAMPLES:
            yield self._open.popitem(last=False)[1]

    @staticmethod
    def _record(held: _OpenShard, dataset: DatasetManifest, index: int, key: str) -> Record:
        record = held.records.get(key)
        if record is None:
            raise NotFound(f"{dataset.shards[index].name} has no sample {key!r:.200}")
        return record


def _shown(dataset: DatasetManifest, index: int) -> Shard:
    """The description of a shard. Raises `NotFound` if there is none, `TooLarge` if it is not shown."""
    if not 0 <= index < len(dataset.shards):
        raise NotFound(f"{dataset.id} has no shard {index}: there are {len(dataset.shards)}, from 0")
    shard = dataset.shards[index]
    if shard.bytes > MAX_SHARD_BYTES or shard.samples > MAX_SAMPLES:
        raise TooLarge(
            f"{shard.name} has {shard.bytes} bytes and {shard.samples} samples: shards of up to {MAX_SHARD_BYTES} "
            f"bytes and {MAX_SAMPLES} samples are shown; fetch it and look at it there"
        )
    return shard


def _media_type(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for signature, kind in _SIGNATURES if data.startswith(signature)), None)
