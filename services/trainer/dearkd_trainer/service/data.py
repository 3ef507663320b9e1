"""The data of a run: its shards, held on this machine as a whole or as far as they fit, and their pixel statistics."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from dearkd.data.manifests import DatasetManifest, datasets, fetch_shard
from dearkd.errors import InvalidInput
from dearkd.jobs.model import dataset_of, kind_of
from dearkd.open_files import allow_open_files
from dearkd.settings import Settings
from dearkd.specs import TrainingSpec
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision.shards import ShardDataset
from dearkd.vision.stored_shards import StoredShards

Source = list[Path] | DatasetManifest
"""Verified files that stay, or a stored dataset whose shards are fetched when they are needed."""

PLACES = {name for name in Settings.model_fields if name.startswith(("storage_", "s3_", "cache_"))}
"""The settings that `open_shards` reads."""
OTHER_FILES = 1024
"""Open files of a run, with those of its loaders, beside the one by which it holds each shard of the cache."""


def manifests_of(storage: Storage, spec: TrainingSpec) -> tuple[DatasetManifest, DatasetManifest | None]:
    """The manifests of the dataset to train on and of that to evaluate on. Raises `NotFound` for one that is gone."""
    identifier = dataset_of(spec.dataset) if kind_of(spec.dataset) == "synthesis" else spec.dataset
    known = datasets(storage)
    return known.get(identifier), known.get(spec.eval_dataset) if spec.eval_dataset else None


def fetch_datasets(
    storage: Storage,
    cache: FileCache,
    spec: TrainingSpec,
    dataset: DatasetManifest,
    evaluated: DatasetManifest | None,
    check: Callable[[], None] = lambda: None,
) -> tuple[Source, Source | None]:
    """Fetch and hold the shards to train on and those to evaluate on, as far as all of either fit into the cache.

    Raises:
        InvalidInput: if those to train on need more than the cache may hold, or more open files than there may be.
        CorruptData: naming the shard and what differs from the manifest.
        BaseException: what `check` raises, which is called before each shard.
    """
    room = cache.max_bytes
    need = _need(spec, dataset, room)
    whole = _fits(dataset, room)
    shards = _fetch(storage, cache, dataset, check) if whole else dataset
    if evaluated is None:
        return shards, None
    fits = _fits(evaluated, room - need, beside=len(dataset.shards) if whole else 0)
    return shards, _fetch(storage, cache, evaluated, check) if fits else evaluated


def open_shards(
    source: Source,
    settings: Settings,
    *,
    num_classes: int,
    in_chans: Literal[1, 3],
    check: Callable[[], None] = lambda: None,
) -> ShardDataset:
    """Open a source as a dataset. Raises as `ShardDataset` and `StoredShards`, which calls `check`."""
    if isinstance(source, list):
        return ShardDataset(source, num_classes=num_classes, in_chans=in_chans)
    return StoredShards(
        Storage.open(settings, fresh=False),
        source,
        lambda: FileCache(settings.cache_dir, settings.cache_bytes),
        num_classes=num_classes,
        in_chans=in_chans,
        check=check,
    )


def _bytes(dataset: DatasetManifest) -> int:
    return sum(shard.bytes for shard in dataset.shards)


def _fits(dataset: DatasetManifest, room: int, beside: int = 0) -> bool:
    """Tell whether all shards of a dataset can be held in so many bytes, when so many others are held."""
    return _bytes(dataset) <= room and allow_open_files(beside + len(dataset.shards) + OTHER_FILES)


def _need(spec: TrainingSpec, dataset: DatasetManifest, room: int) -> int:
    """The bytes of a dataset that a run holds at a time: all of it, or two windows of its largest shards.

    With several processes, one may already be in the third window while another still reads the first.
    """
    whole, window = _bytes(dataset), spec.shuffle_shards
    if _fits(dataset, room):
        return whole
    if window is None and whole <= room:
        raise InvalidInput.at(
            "/shuffle_shards",
            f"{dataset.id} has {len(dataset.shards)} shards, and all are shuffled together, but a process may have no "
            f"{len(dataset.shards) + OTHER_FILES} open files on this worker: raise that limit (ulimit -Hn, "
            "LimitNOFILE=), or set shuffle_shards, so that so many shards are shuffled at a time",
        )
    if window is None:
        raise InvalidInput.at(
            "/shuffle_shards",
            f"the shards of {dataset.id} have {whole} bytes, and all are shuffled together, but DEARKD_CACHE_BYTES is "
            f"{room} on this worker: raise that, or set shuffle_shards, so that so many shards are shuffled at a time",
        )
    count = window * (2 if spec.processes == 1 else 3)
    need = sum(sorted((shard.bytes for shard in dataset.shards), reverse=True)[:count])
    if need > room:
        raise InvalidInput.at(
            "/shuffle_shards",
            f"{window}, for which {count} shards of {dataset.id} are held at a time: they have up to {need} bytes, but "
            f"DEARKD_CACHE_BYTES is {room} on this worker: set fewer, or raise that",
        )
    return need


def _fetch(storage: Storage, cache: FileCache, manifest: DatasetManifest, check: Callable[[], None]) -> list[Path]:
    """A dataset's shards, each fetched and verified before anything reads it.

    Raises:
        CorruptData: naming the shard and what differs from the manifest.
    """
    paths = []
    for shard in manifest.shards:
        check()
        paths.append(fetch_shard(storage, manifest, shard, cache))
    return paths


def pixel_statistics(
    data: ShardDataset, check: Callable[[], None] = lambda: None, *, images: int = 2048
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, of pixels in [0, 1], of a set without a teacher, to four digits.

    Args:
        data: of images of any sizes; each pixel counts alike.
        check: called before each image; what it raises ends the work.
        images: the most images that are read, evenly spread.

    Raises:
        InvalidInput: if there is no image.
        CorruptData: naming the image that does not open.
    """
    if len(data) == 0:
        raise InvalidInput.at("/dataset", "there is no image to train on: the dataset is empty")
    count = 0
    total, squares = (torch.zeros(data.in_chans, dtype=torch.float64) for _ in range(2))
    places = np.unique(np.linspace(0, len(data) - 1, min(images, len(data))).round().astype(np.int64))
    for place in data.visit(places):
        check()
        pixels = data[place][0].flatten(1).double()
        count += pixels.shape[1]
        total += pixels.sum(1)
        squares += pixels.square().sum(1)
    mean = total / count
    # Sums of whole numbers below 2^53 are exact, so that nothing is lost by the difference.
    deviation = ((squares - total * mean) / max(1, count - 1)).clamp(min=0).sqrt()
    return (
        [round(value, 4) for value in (mean / 255).tolist()],
        [max(1e-4, round(value, 4)) for value in (deviation / 255).tolist()],
    )
