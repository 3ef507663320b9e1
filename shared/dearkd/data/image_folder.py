"""Folders of images on this machine, read for `dearkd dataset add` and `dearkd evaluate`."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import typer

from dearkd.choices import FolderOrder
from dearkd.data.class_folders import find_classes, label_names
from dearkd.data.dataset_splits import choose_shards, split_level
from dearkd.data.file_names import require_kept_name
from dearkd.data.folder_walk import Skipped, entries, walk
from dearkd.data.image_intake import Channels, ImageFile, examine, shown
from dearkd.data.shard_files import Sample, Shard, shard_name, write_shard
from dearkd.data.shard_info import CLASS_NAMES, INFO, info_json, read_class_names, read_info
from dearkd.specs.class_order import stored_name
from dearkd.storage.objects import Storage

SHARD_SAMPLES = 1000
SHARD_BYTES = 2**28
"""A shard ends at whichever comes first; small enough to be fetched and cached one by one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Choices about the reading of a folder, for what it does not say itself."""

    split: str | None = None
    class_order: FolderOrder | None = None
    class_names: Sequence[str] | None = None
    """Names in the order of their labels; they come before a `class_names.json` in the folder."""
    usual_names: Sequence[str] = ()
    """Names in label order, used where nothing else gives an order and all class folders are among them."""
    in_chans: Channels | None = None
    """Default: 3, or 1 where all images are grey."""
    resize: int | None = None
    """Short side, in pixels, at which larger images are stored."""


class Source(Protocol):
    """Something that can be copied into storage."""

    @property
    def total(self) -> int:
        """The amount that there is to check and to copy, in the unit that both count."""
        ...

    @property
    def is_listed(self) -> bool:
        """True if a list of class names, given or beside class folders, decided on the labels."""
        ...

    def check(self) -> Iterator[int]:
        """Read everything once, before anything is copied; yields how much each step did.

        Raises:
            typer.BadParameter: naming the file that cannot be in a dataset.
        """
        ...

    def summary(self) -> dict[str, Any]:
        """A summary of what will be copied and what will not, once all is checked; a JSON object."""
        ...

    def copy_to(self, storage: Storage, prefix: str) -> Iterator[int]:
        """Copy everything that was checked under a prefix that nobody else writes to."""
        ...


def read_folder(folder: Path, reading: Reading | None = None) -> Source:
    """Find what can be copied from a folder: shards (`*.tar`), or else class folders of images.

    Class folders count in the order of the names that were given, or that are in `class_names.json` beside them, else
    in that of their own names. One that is named so and is not there is a class without images.

    Raises:
        typer.BadParameter: if it holds neither, or what would become another data set than was meant: several splits,
            one class, classes whose order is not certain.
        InvalidInput: if `_info.json` or `class_names.json` there cannot be used.
    """
    reading, skipped = reading or Reading(), Skipped()
    folders, files = entries(folder, Skipped())
    if any(path.suffix == ".tar" for path in files):
        return _shard_folder(folder, reading, skipped)
    for path in folders:
        below = entries(path, Skipped())[1]
        if any(file.suffix == ".tar" for file in below):
            raise typer.BadParameter(f"the shards (*.tar) of {shown(folder)} lie in {shown(path)}: give that folder")
    level = split_level(folder, reading.split, skipped)
    beside = [path for path in dict.fromkeys((level, folder)) if (path / CLASS_NAMES).is_file()]
    if reading.class_names is None and beside:
        text = (beside[0] / CLASS_NAMES).read_bytes()
        reading = replace(reading, class_names=read_class_names(text, str(beside[0] / CLASS_NAMES)))
    classes = find_classes(level, reading.split, skipped)
    if (
        reading.class_names is None
        and reading.class_order is None
        and {*classes} <= {*map(stored_name, reading.usual_names)}
    ):
        reading = replace(reading, class_names=reading.usual_names)
    names = label_names(level, list(classes), reading.class_names, reading.class_order)
    listed = [(name, list(walk(classes[name], skipped)) if name in classes else []) for name in names]
    return ImageFolder(listed, reading, skipped)


def _shard_folder(folder: Path, reading: Reading, skipped: Skipped) -> "ShardFolder":
    for flag, given in (
        ("--class-order", reading.class_order),
        ("--in-chans", reading.in_chans),
        ("--resize", reading.resize),
    ):
        if given is not None:
            raise typer.BadParameter(f"{flag} is for class folders, but {shown(folder)} holds shards: leave it out")
    folders, files = entries(folder, skipped)
    info = folder / INFO
    tars = [path for path in files if path.suffix == ".tar"]
    taken = tars
    if info in files and reading.split is None:
        named = read_info(info.read_bytes(), str(info))
        missing = sorted(set(named) - {path.name for path in tars})
        if missing:
            raise typer.BadParameter(f"{info} names {missing[0]!r}, which is not there: fetch it, or correct {INFO}")
        taken = [path for path in tars if path.name in named]
    else:
        taken = choose_shards(tars, reading.split, folder, skipped)
    for path in taken:
        require_kept_name(path.name)
    names = list(reading.class_names) if reading.class_names is not None else None
    if names is None and folder / CLASS_NAMES in files:
        names = read_class_names((folder / CLASS_NAMES).read_bytes(), str(folder / CLASS_NAMES))
    used = {*taken, folder / CLASS_NAMES} | ({info} if reading.split is None else set())
    for path in files:
        if path not in used and path.suffix != ".tar":
            skipped.add("no shard", path)
        elif path not in used and reading.split is None:
            skipped.add(f"not named by {INFO}", path)
    for path in folders:
        skipped.add_all("in a folder beside the shards", path)
    return ShardFolder([*taken, *([info] if info in files and info in used else [])], names, skipped)


@dataclass(frozen=True, slots=True)
class ShardFolder:
    """A WebDataset: copied as it is. Counts bytes."""

    files: Sequence[Path]
    names: Sequence[str] | None
    skipped: Skipped
    is_listed = False

    @property
    def total(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def check(self) -> Iterator[int]:
        yield from ()

    def summary(self) -> dict[str, Any]:
        shards = sum(path.suffix == ".tar" for path in self.files)
        classes = _classes(self.names) if self.names is not None else {}
        return {"shards": shards, "bytes": self.total, **classes, **_left_out(self.skipped)}

    def copy_to(self, storage: Storage, prefix: str) -> Iterator[int]:
        for path in self.files:
            storage.put(f"{prefix}/{path.name}", path)
            yield path.stat().st_size
        if self.names is not None:
            storage.create(f"{prefix}/{CLASS_NAMES}", json.dumps(list(self.names), ensure_ascii=False).encode())


@dataclass(slots=True)
class ImageFolder:
    """Class folders, packed into shards. Counts files twice: checked, then copied."""

    classes: Sequence[tuple[str, Sequence[Path]]]
    reading: Reading
    skipped: Skipped
    images: list[tuple[int, ImageFile]] = field(default_factory=list)
    """(label, file), by `check`."""

    @property
    def total(self) -> int:
        return 2 * sum(len(files) for _, files in self.classes)

    @property
    def is_listed(self) -> bool:
        return self.reading.class_names is not None

    def check(self) -> Iterator[int]:
        for label, (name, files) in enumerate(self.classes):
            before = len(self.images)
            for path in files:
                image = examine(path, self.reading.resize)
                if image is None:
                    self.skipped.add("no image", path)
                else:
                    self.images.append((label, image))
                yield 1
            if files and len(self.images) == before:
                raise typer.BadParameter(f"class folder {name!r} holds no image (but {shown(files[0])}): remove it")

    @property
    def channels(self) -> Channels:
        """The channels of all images as stored: what was asked for, else colour unless all are grey."""
        return self.reading.in_chans or (1 if all(image.grey for _, image in self.images) else 3)

    def summary(self) -> dict[str, Any]:
        channels, images = self.channels, [image for _, image in self.images]
        changed = {
            "turned by EXIF orientation": sum(image.turned for image in images),
            "grey made colour": sum(image.grey for image in images) if channels == 3 else 0,
            "colour made grey": sum(not image.grey for image in images) if channels == 1 else 0,
            "first frame of several": sum(image.frames > 1 for image in images),
            "resized": sum(image.shrunk for image in images),
            "stored as PNG": sum(not image.is_kept(channels) for image in images),
        }
        samples = Counter(label for label, _ in self.images)
        return {
            "images": len(images),
            "bytes": sum(image.size(channels) for image in images),
            "in_chans": channels,
            **_classes([name for name, _ in self.classes]),
            "classes_without_images": [name for n, (name, _) in enumerate(self.classes) if not samples[n]],
            "converted": {what: count for what, count in changed.items() if count},
            **_left_out(self.skipped),
        }

    def copy_to(self, storage: Storage, prefix: str) -> Iterator[int]:
        shards: list[Shard] = []
        channels = self.channels
        with tempfile.TemporaryDirectory(prefix="dearkd-dataset-") as scratch:
            for index, images in enumerate(self._cut(channels)):
                path = Path(scratch) / shard_name(index)
                shards.append(write_shard(path, (self._sample(*entry, channels) for entry in images)))
                storage.create(f"{prefix}/{path.name}", path)
                path.unlink()
                yield len(images)
        storage.create(f"{prefix}/{INFO}", info_json(shards))
        names = [name for name, _ in self.classes]
        storage.create(f"{prefix}/{CLASS_NAMES}", json.dumps(names, ensure_ascii=False).encode())

    def _cut(self, channels: Channels) -> Iterator[list[tuple[int, int, ImageFile]]]:
        """(running number, label, file), a shard at a time."""
        cut: list[tuple[int, int, ImageFile]] = []
        size = 0
        for number, (label, image) in enumerate(self.images):
            length = image.size(channels)
            if cut and (len(cut) == SHARD_SAMPLES or size + length > SHARD_BYTES):
                yield cut
                cut, size = [], 0
            cut.append((number, label, image))
            size += length
        yield cut

    def _sample(self, number: int, label: int, image: ImageFile, channels: Channels) -> Sample:
        data, suffix = image.stored(channels, self.reading.resize)
        return Sample(key=f"{number:09d}", image=data, suffix=suffix, label=label, fields={"label": label})


def _classes(names: Sequence[str]) -> dict[str, Any]:
    return {"classes": len(names), "first_class": names[0], "last_class": names[-1]}


def _left_out(skipped: Skipped) -> dict[str, Any]:
    return {"skipped": skipped.counts, "skipped_examples": skipped.examples}
