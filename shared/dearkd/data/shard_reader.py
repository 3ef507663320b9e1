"""The reading of shards: samples of a tar, each with one image and its label."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dearkd.data.image_files import is_grey, open_image
from dearkd.data.sample_labels import MAX_LABEL_BYTES, no_label, parse_label
from dearkd.data.shard_files import IMAGE_SUFFIXES
from dearkd.data.tar_members import read_members, split_member
from dearkd.errors import CorruptData

MAX_PARTS = 100
"""Members of one sample."""
LOOKED_AT = (*IMAGE_SUFFIXES, "cls")


@dataclass(slots=True)
class ShardContents:
    """What reading a shard found."""

    samples: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    image_sizes: set[tuple[int, int]] = field(default_factory=set)
    modes: Counter[str] = field(default_factory=Counter)
    """Images that are grey (L) and that are of colour (RGB)."""


def inspect_shard(path: Path, *, num_classes: int | None = None) -> ShardContents:
    """Read a shard whole: every sample must have one image that opens and an integer label, its members together.

    Raises:
        CorruptData: naming the shard, the sample and what is wrong with it.
    """
    found = ShardContents()
    seen: set[str] = set()
    key, parts = "", {}  # type: str, dict[str, bytes]

    def close() -> None:
        if key and parts:
            _inspect_sample(path.name, key, parts, found, num_classes)

    for member, tar in read_members(path):
        stem, suffix = split_member(member.name)
        if not suffix:
            continue
        if stem != key:
            close()
            if stem in seen:
                raise CorruptData(
                    f"{path.name}: sample {stem!r} stands there twice, apart: its members must follow each other"
                )
            seen.add(stem)
            key, parts = stem, {}
        if suffix in parts:
            raise CorruptData(f"{path.name}: sample {stem!r} has two members .{suffix}")
        if len(parts) == MAX_PARTS:
            raise CorruptData(f"{path.name}: sample {stem!r} has more than {MAX_PARTS} members")
        # What is neither image nor label is not looked at: a sample may hold much of it.
        file = tar.extractfile(member) if suffix in LOOKED_AT else None
        parts[suffix] = b"" if file is None else file.read(MAX_LABEL_BYTES + 1 if suffix == "cls" else -1)
    close()
    if found.samples == 0:
        raise CorruptData(f"{path.name} holds no sample (an image with a .cls beside it)")
    return found


def _inspect_sample(
    shard: str, key: str, parts: dict[str, bytes], found: ShardContents, num_classes: int | None
) -> None:
    images = [suffix for suffix in parts if suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise CorruptData(
            f"{shard}: sample {key!r} has {len(images)} images ({', '.join(parts)}); it needs one of {IMAGE_SUFFIXES}"
        )
    try:
        label = parse_label(parts["cls"])
    except KeyError:
        raise CorruptData(f"{shard}: sample {key!r} {no_label(parts)}") from None
    except ValueError:
        raise CorruptData(
            f"{shard}: sample {key!r} has label {parts['cls'][:40]!r}, which is no whole number"
        ) from None
    if label < 0 or (num_classes is not None and label >= num_classes):
        bound = "" if num_classes is None else f" and below {num_classes}"
        bound += ": they count from 0, not from 1" * (label == num_classes)
        raise CorruptData(f"{shard}: sample {key!r} has label {label}; labels are at least 0{bound}")
    try:
        with open_image(parts[images[0]]) as image:
            image.load()
            found.image_sizes.add(image.size)
            found.modes["L" if is_grey(image) else "RGB"] += 1
    except CorruptData as error:
        raise CorruptData(f"{shard}: sample {key!r} does not open: {error.message}") from None
    found.samples += 1
    found.classes[label] += 1
