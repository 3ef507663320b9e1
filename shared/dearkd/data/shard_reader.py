"""The reading of shards: the samples of a tar, each with one image and its label.

The form of a sample is known here, where files become samples, and in `shard_files`, where samples become files.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from dearkd.data.image_files import is_grey, open_image
from dearkd.data.sample_labels import MAX_LABEL_BYTES, no_label, parse_label
from dearkd.data.shard_files import FIELDS, IMAGE_SUFFIXES, LABEL, LOGITS
from dearkd.data.tar_members import read_members, split_member
from dearkd.errors import CorruptData

MAX_PARTS = 100
"""Members of one sample."""


class Span(NamedTuple):
    """The place of a file within a shard, in bytes."""

    offset: int
    size: int


class Record(NamedTuple):
    """One sample as it lies in a shard. Its label is read, its image and its figures are not."""

    key: str
    label: int
    image: Span
    logits: Span | None
    fields: Span | None = None


class Reader:
    """The samples of one shard that lies locally, in its order.

    Everything that reads shards does it through this: registration, training, evaluation. Another form of samples or
    shards is another reader, if a sample's files are spans of the shard's.

    Args:
        path: of the tar. Nothing is believed of it: a stranger may have made it.
        num_classes: labels must be below it; None for any that are not negative.
    """

    def __init__(self, path: Path, *, num_classes: int | None = None) -> None:
        self.path = path
        self.num_classes = num_classes

    def __iter__(self) -> Iterator[Record]:
        """Read the shard from its beginning to its end.

        Raises:
            CorruptData: naming the shard and the sample: if the tar cannot be read whole (`read_members`), a sample's
                members stand apart, are too many or of one suffix, or it has not one image and one label in range.
        """
        seen: set[str] = set()
        key, parts = "", {}  # type: str, dict[str, Span]
        with self.path.open("rb") as file:
            for member in read_members(self.path):
                stem, suffix = split_member(member.name)
                if not suffix:
                    continue
                if stem != key:
                    if key:
                        yield self._record(file, key, parts)
                    if stem in seen:
                        raise self.corrupt(stem, "stands there twice, apart: its members must follow each other")
                    seen.add(stem)
                    key, parts = stem, {}
                if suffix in parts:
                    raise self.corrupt(stem, f"has two members .{suffix}")
                if len(parts) == MAX_PARTS:
                    raise self.corrupt(stem, f"has more than {MAX_PARTS} members")
                parts[suffix] = Span(member.offset_data, member.size)
            if key:
                yield self._record(file, key, parts)

    @contextmanager
    def open_image(self, record: Record) -> Iterator[Image.Image]:
        """Open the image of a record; its pixels are decoded when they are first asked for.

        Raises:
            CorruptData: naming the shard and the sample, if it does not open or cannot be decoded.
        """
        with self.path.open("rb") as file:
            file.seek(record.image.offset)
            data = file.read(record.image.size)
        try:
            with open_image(data) as image:
                yield image
        except CorruptData as error:
            raise self.corrupt(record.key, f"does not open: {error.message}") from None

    def corrupt(self, key: str, what: str) -> CorruptData:
        """An error that names the shard and the sample."""
        return CorruptData(f"{self.path.name}: sample {key!r} {what}")

    def _record(self, file: BinaryIO, key: str, parts: dict[str, Span]) -> Record:
        images = [suffix for suffix in parts if suffix in IMAGE_SUFFIXES]
        if len(images) != 1:
            raise self.corrupt(
                key, f"has {len(images)} images ({', '.join(parts)}); it needs one of {', '.join(IMAGE_SUFFIXES)}"
            )
        if LABEL not in parts:
            raise self.corrupt(key, no_label(parts))
        file.seek(parts[LABEL].offset)
        text = file.read(min(parts[LABEL].size, MAX_LABEL_BYTES + 1))
        try:
            label = parse_label(text)
        except ValueError:
            raise self.corrupt(key, f"has label {text[:40]!r}, which is no whole number") from None
        if label < 0 or (self.num_classes is not None and label >= self.num_classes):
            bound = "" if self.num_classes is None else f" and below {self.num_classes}"
            bound += ": they count from 0, not from 1" * (label == self.num_classes)
            raise self.corrupt(key, f"has label {label}; labels are at least 0{bound}")
        return Record(key, label, parts[images[0]], parts.get(LOGITS), parts.get(FIELDS))


@dataclass(slots=True)
class ShardContents:
    """Counts over the samples of a shard that was read whole."""

    samples: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    image_sizes: set[tuple[int, int]] = field(default_factory=set)
    """(width, height) in pixels."""
    modes: Counter[str] = field(default_factory=Counter)
    """Images that are grey (L) and that are of colour (RGB)."""


def inspect_shard(path: Path, *, num_classes: int | None = None) -> ShardContents:
    """Read a shard whole, and decode every image.

    Raises:
        CorruptData: naming the shard, the sample and what is wrong with it, or if it holds no sample.
    """
    found = ShardContents()
    reader = Reader(path, num_classes=num_classes)
    for record in reader:
        with reader.open_image(record) as image:
            image.load()
            found.image_sizes.add(image.size)
            found.modes["L" if is_grey(image) else "RGB"] += 1
        found.samples += 1
        found.classes[record.label] += 1
    if found.samples == 0:
        raise CorruptData(f"{path.name} holds no sample (an image with a .cls beside it)")
    return found
