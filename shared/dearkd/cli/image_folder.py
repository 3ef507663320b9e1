"""Folders of images on this machine, read for `dearkd dataset add`."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import typer

from dearkd.datasets import (
    IMAGE_SUFFIXES,
    MAX_MEMBER_BYTES,
    Sample,
    Shard,
    info_json,
    shard_name,
    write_shard,
)
from dearkd.errors import CorruptData
from dearkd.image_files import IMAGE_FORMATS, is_grey, open_image
from dearkd.names import first_control
from dearkd.shard_info import CLASS_NAMES, INFO, read_class_names, read_info
from dearkd.storage import Storage

SHARD_SAMPLES = 1000
SHARD_BYTES = 2**28
"""A shard ends at whichever comes first; small enough to be fetched and cached one by one."""

# What torchvision's ImageFolder would read and we do not: leaving these out in silence would shrink the set.
FOREIGN_SUFFIXES = frozenset((".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".heic", ".avif"))


class Source(Protocol):
    """Something that can be copied into storage."""

    @property
    def total(self) -> int:
        """How much there is to copy, in the unit that `copy_to` counts."""
        ...

    def copy_to(self, storage: Storage, prefix: str) -> Iterator[int]:
        """Copy everything under a prefix that nobody else writes to; yields how much each step copied."""
        ...


def read_folder(folder: Path) -> Source:
    """What a folder holds: shards (`*.tar`), or else class folders of images.

    Class folders count in the order of `class_names.json` where there is one, else in that of their names. One that it
    names and that is not there is a class without images.

    Raises:
        typer.BadParameter: if it holds neither, or files that would be lost.
        InvalidInput: if `_info.json` or `class_names.json` there cannot be used.
    """
    shards = sorted(folder.glob("*.tar"))
    info, names = folder / INFO, folder / CLASS_NAMES
    order = read_class_names(names.read_bytes(), str(names)) if names.is_file() else None
    if shards:
        if info.is_file():
            read_info(info.read_bytes(), str(info))
        return ShardFolder([*shards, *(path for path in (info, names) if path.is_file())])
    classes = {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if not classes:
        raise typer.BadParameter(
            f"{folder} holds neither *.tar shards nor class folders of images: give the folder above the class folders"
        )
    for name in classes:
        if found := first_control(name):
            raise typer.BadParameter(f"the class folder {name!a} has the control character {found}: rename it")
    if order is None:
        order = sorted(classes)
    elif len(set(order)) != len(order):
        twice = next(name for name in order if order.count(name) > 1)
        raise typer.BadParameter(f"{names} names {twice!r} twice: class folders need names of their own")
    unknown = sorted(classes.keys() - set(order))
    if unknown:
        raise typer.BadParameter(f"{names} does not name the class folder {unknown[0]!r}: add or remove it")
    return ImageFolder([(name, _images(classes[name]) if name in classes else []) for name in order])


def _images(folder: Path) -> list[Path]:
    """All images at any depth, as torchvision's ImageFolder finds them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in files:
        if path.suffix.lower() in FOREIGN_SUFFIXES:
            raise typer.BadParameter(
                f"{path} is a {path.suffix} file: only {', '.join(IMAGE_FORMATS)} are read; convert it"
            )
    images = [path for path in files if path.suffix.lower().removeprefix(".") in IMAGE_SUFFIXES]
    if not images:
        raise typer.BadParameter(f"class folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}): remove it")
    return images


@dataclass(frozen=True, slots=True)
class ShardFolder:
    """A WebDataset: copied as it is. Counts bytes."""

    files: Sequence[Path]

    @property
    def total(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def copy_to(self, storage: Storage, prefix: str) -> Iterator[int]:
        for path in self.files:
            storage.put(f"{prefix}/{path.name}", path)
            yield path.stat().st_size


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Class folders, packed into shards, image files as they are. Counts images twice: checked, then copied."""

    classes: Sequence[tuple[str, Sequence[Path]]]

    @property
    def total(self) -> int:
        return 2 * sum(len(images) for _, images in self.classes)

    def copy_to(self, storage: Storage, prefix: str) -> Iterator[int]:
        """Raises `typer.BadParameter`, before anything is copied, naming the image that cannot be in a dataset."""
        yield from self._check()
        shards: list[Shard] = []
        with tempfile.TemporaryDirectory(prefix="dearkd-dataset-") as scratch:
            for index, files in enumerate(self._cut()):
                path = Path(scratch) / shard_name(index)
                shards.append(write_shard(path, (_sample(*entry) for entry in files)))
                storage.create(f"{prefix}/{path.name}", path)
                path.unlink()
                yield len(files)
        storage.create(f"{prefix}/{INFO}", info_json(shards))
        names = [name for name, _ in self.classes]
        storage.create(f"{prefix}/{CLASS_NAMES}", json.dumps(names, ensure_ascii=False).encode())

    def _check(self) -> Iterator[int]:
        first: dict[bool, Path] = {}
        for _, images in self.classes:
            for path in images:
                first.setdefault(_is_grey(path), path)
                if len(first) > 1:
                    raise typer.BadParameter(
                        f"{first[True]} is grey, but {first[False]} has colours: a dataset has 1 or 3 channels "
                        "throughout; convert it"
                    )
                yield 1

    def _cut(self) -> Iterator[list[tuple[int, int, Path]]]:
        """(running number, label, file), a shard at a time."""
        entries = [(label, path) for label, (_, images) in enumerate(self.classes) for path in images]
        cut: list[tuple[int, int, Path]] = []
        size = 0
        for number, (label, path) in enumerate(entries):
            length = path.stat().st_size
            if cut and (len(cut) == SHARD_SAMPLES or size + length > SHARD_BYTES):
                yield cut
                cut, size = [], 0
            cut.append((number, label, path))
            size += length
        yield cut


def _is_grey(path: Path) -> bool:
    size = path.stat().st_size
    if size > MAX_MEMBER_BYTES:
        raise typer.BadParameter(f"{path} has {size} bytes; an image may have {MAX_MEMBER_BYTES}")
    try:
        with open_image(path.read_bytes()) as image:
            image.load()
            return is_grey(image)
    except CorruptData as error:
        raise typer.BadParameter(f"{path}: {error.message}; mend or remove it") from None


def _sample(number: int, label: int, path: Path) -> Sample:
    return Sample(
        key=f"{number:09d}",
        image=path.read_bytes(),
        suffix=path.suffix.lower().removeprefix("."),
        label=label,
        fields={"label": label},
    )
