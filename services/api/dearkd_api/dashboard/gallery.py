"""A gallery: the samples of a dataset, all or of one class, page by page."""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from dearkd.data.manifests import DatasetManifest
from dearkd.data.shard_files import Shard
from dearkd.errors import TooLarge
from dearkd_api.sample_files import MAX_SHARD_BYTES, OPEN_SHARDS, SampleFiles

SHOWN = 48
"""Samples of a page."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A sample of a gallery."""

    shard: int
    key: str

    @property
    def name(self) -> str:
        """Its name in addresses, `SHARD/KEY`."""
        return f"{self.shard}/{self.key}"

    def source(self, dataset: str) -> str:
        """The address of its image."""
        return f"/datasets/{dataset}/images/{self.shard}/{quote(self.key)}"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a gallery, counted from 0."""

    cells: list[Cell]
    number: int
    total: int
    """Samples on all pages."""

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // SHOWN))


def page(files: SampleFiles, dataset: DatasetManifest, label: int | None, number: int) -> Page:
    """The samples of a page, all classes or one, in the order of the shards: only those that it needs are read.

    Raises:
        TooLarge: if they lie in more shards than stay open, of more bytes than may be read for a page.
        NotFound, CorruptData: as `SampleFiles.picture`.
    """
    total = sum(_count(shard, label) for shard in dataset.shards)
    number = max(0, min(number, -(-total // SHOWN) - 1))
    parts = [*_parts(dataset, label, number * SHOWN, SHOWN)]
    size = sum(dataset.shards[index].bytes for index, _, _ in parts)
    if len(parts) > OPEN_SHARDS and size > MAX_SHARD_BYTES:
        raise TooLarge(
            f"the images of this page lie in {len(parts)} shards of {size} bytes together, and {MAX_SHARD_BYTES} are "
            "read for a page: look at all classes, or fetch the shards and look there"
        )
    cells = []
    for index, first, last in parts:
        cells += [Cell(index, key) for key in files.keys(dataset, index, label)[first:last]]
    return Page(cells, number, total)


def of_sample(dataset: DatasetManifest, key: str) -> Cell | None:
    """The cell of a sample of a synthesised set, whose keys count on from shard to shard; None if it is in none."""
    if not key.isdecimal():
        return None
    place = int(key)
    for index, shard in enumerate(dataset.shards):
        if place < shard.samples:
            return Cell(index, key)
        place -= shard.samples
    return None


def _parts(dataset: DatasetManifest, label: int | None, skip: int, take: int) -> Iterator[tuple[int, int, int]]:
    """The shards that hold some samples, each with the first and behind the last of them among its own."""
    for index, shard in enumerate(dataset.shards):
        count = _count(shard, label)
        if skip >= count:
            skip -= count
            continue
        part = min(take, count - skip)
        yield index, skip, skip + part
        take, skip = take - part, 0
        if take == 0:
            return


def _count(shard: Shard, label: int | None) -> int:
    return shard.samples if label is None else shard.classes.get(label, 0)
