"""Registered datasets: the manifest of each, their catalog, and verified local copies of their shards.

A dataset is a folder of WebDataset shards (`train-000000.tar` …) with `_info.json` (for timm's `wds/` reader),
`dataset.json` (ours, written last: the dataset exists when it does), `preview.png` and `README.md` (the dataset card).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from dearkd.choices import ClassOrder
from dearkd.data.shard_files import Shard
from dearkd.errors import CorruptData, NotFound
from dearkd.specs import DatasetFacts
from dearkd.specs.budget import EndedEarly
from dearkd.specs.class_order import is_counted
from dearkd.storage.catalog import Catalog, Manifest

if TYPE_CHECKING:  # a client reads manifests, and has no storage
    from dearkd.storage.file_cache import FileCache
    from dearkd.storage.objects import Storage


class DatasetClass(BaseModel):
    model_config = ConfigDict(frozen=True)

    index: int
    name: str
    samples: int


class DatasetManifest(Manifest):
    """`dataset.json`. `teacher` and `spec` are null for sets that were registered, not synthesised."""

    num_samples: int
    num_classes: int
    image_size: int | None
    """Side of the square images; None where they differ."""
    in_chans: int
    classes: list[DatasetClass]
    shards: list[Shard]
    prefix: str
    """The folder of the shards, as a path under the storage root."""
    teacher: str | None = None
    teacher_sha256: str | None = None
    spec: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    ended_early: EndedEarly | None = None
    """The reason why its job made fewer images than its spec says; None where all were made, or it was registered."""
    class_order: ClassOrder | None = None
    """The order of its labels as its owner declared it; None where nobody did."""
    converted: dict[str, int] = Field(default_factory=dict)
    """Images of other channels than `in_chans`, which readers convert as Pillow does, by what they are."""
    job: str | None = None
    seed: int | None = None
    made_with: dict[str, Any] | None = None
    """Code version, library versions, device and thread count: with the spec they decide every byte. None where the
    shards differ in them, or nothing is known: see each."""

    @property
    def class_names(self) -> list[str]:
        """A name for each label, by its number where the manifest has none."""
        names = {c.index: c.name for c in self.classes}
        return [names.get(index, str(index)) for index in range(self.num_classes)]

    def conversions(self, in_chans: int) -> list[str]:
        """Sentences on the images that are converted where the dataset is read with so many channels."""
        grey = self.num_samples if self.in_chans == 1 else self.converted.get("grey", 0)
        colour = self.num_samples - grey
        if in_chans == 3:
            return [f"{grey:,} grey images are made colour"] if grey else []
        return [f"{colour:,} colour images are made grey"] if colour else []

    @property
    def facts(self) -> DatasetFacts:
        spec = self.spec
        names = tuple(c.name for c in self.classes)
        return DatasetFacts(
            num_samples=self.num_samples,
            num_classes=self.num_classes,
            image_size=self.image_size,
            in_chans=self.in_chans,
            synthetic=spec is not None,
            mirrored=(spec is not None and spec["flip"] > 0) or None,
            teacher=self.teacher,
            stored_logits=spec is not None and spec.get("store_logits", False),
            class_samples=tuple(c.samples for c in self.classes),
            # Of a synthesised set numbers are no names, but the outputs of a teacher that has none.
            class_names=None if spec is not None and is_counted(names) else names,
            class_order=self.class_order,
        )


def datasets(storage: Storage, *, remember: bool = False) -> Catalog[DatasetManifest]:
    return Catalog(storage, "datasets", "ds", "dataset.json", DatasetManifest, remember=remember)


def fetch_shard(storage: Storage, dataset: DatasetManifest, shard: Shard, cache: FileCache) -> Path:
    """A verified local copy, which stays until the cache is closed.

    Raises:
        CorruptData: naming the shard and what differs from the manifest.
    """
    key = f"{dataset.prefix}/{shard.name}"
    try:
        return cache.fetch(storage, key, name=shard.name, sha256=shard.sha256, size=shard.bytes)
    except NotFound:
        raise CorruptData(f"{dataset.id}: {shard.name} is named by the manifest, but gone from storage") from None


def count_classes(shards: Iterable[Shard], names: list[str] | None, num_classes: int) -> list[DatasetClass]:
    counts: Counter[int] = Counter()
    for shard in shards:
        counts.update(shard.classes)
    return [DatasetClass(index=i, name=names[i] if names else str(i), samples=counts[i]) for i in range(num_classes)]
