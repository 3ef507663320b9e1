"""A few real images with their labels, spread over the classes of a folder or of shards."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import numpy as np
import torch
import typer
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from dearkd.choices import FolderOrder
from dearkd.data.image_folder import ImageFolder, Reading, ShardFolder, read_folder
from dearkd.data.image_intake import examine, shown
from dearkd.data.shard_files import Shard
from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.specs.class_order import count_remedy, other_order
from dearkd.vision.images import decode
from dearkd.vision.shards import ShardDataset

SHORT_SIDE = 2048
"""Larger images are shrunk to it, in pixels, before they are read, which otherwise may be refused for their size."""


@dataclass(frozen=True, slots=True)
class ImageSample:
    """Images as a network takes them, but for its normalisation."""

    pixels: Tensor
    """(N, C, image_size, image_size), uint8, RGB or grey."""
    labels: Tensor
    """(N,), int64."""
    names: Sequence[str]
    """The origin of each image: a path in the folder, or a shard with a key."""
    class_names: Sequence[str]
    """In the order of labels."""
    own_pixels: Tensor | None = None
    """The same in their own size, where all have one and it is smaller."""
    remarks: Sequence[str] = ()
    """Lines on what was left out or assumed."""


def read_sample(
    folder: Path,
    teacher: TeacherSpec,
    count: int,
    *,
    split: str | None = None,
    class_order: FolderOrder | None = None,
) -> ImageSample:
    """Up to `count` images of a folder, as many of each class as can be, evenly spread over its files.

    The shorter side becomes the teacher's image size and the centre is cut out; nothing else is cropped. Class folders
    count as `read_folder` says, those that the teacher names in its order. Where their order is not certain they count
    by name: which is right can be measured.

    Args:
        folder: of class folders, or of `*.tar` shards.
        teacher: its image size, channels and classes.
        count: at least 1.
        split, class_order: as of `dearkd dataset add`.

    Raises:
        typer.BadParameter: as `read_folder`, or naming an image that cannot be read.
        InvalidInput: if there is no image, or there are other than the teacher's number of classes.
        CorruptData: naming the sample of a shard that cannot be read.
    """
    if not folder.is_dir():
        raise InvalidInput(f"{shown(folder)} is no folder on this machine: give one that holds a folder for each class")
    reading = Reading(split=split, class_order=class_order, usual_names=teacher.class_names or ())
    source, remarks = _opened(folder, reading)
    if isinstance(source, ShardFolder):
        names = list(source.names) if source.names is not None else list(teacher.class_names or ())
        names = names or [str(label) for label in range(teacher.num_classes)]
        require_classes(shown(folder), names, teacher)
        tars = [path for path in source.files if path.suffix == ".tar"]
        return sample_of_shards(tars, teacher, count, names)
    folders = cast(ImageFolder, source)
    names = [name for name, _ in folders.classes]
    require_classes(shown(folder), names, teacher)
    own = list[Tensor | None]()
    found = _chosen(folders, count, teacher, own)
    if not found:
        raise InvalidInput(f"{shown(folder)} holds no image in its {len(names)} class folders: put some there")
    remarks += _order_remarks(names, teacher)
    remarks += [f"{what}: {count:,}" for what, count in folders.skipped.counts.items()]
    return ImageSample(
        pixels=torch.stack([pixels for pixels, _, _ in found]),
        labels=torch.tensor([label for _, label, _ in found]),
        names=[shown(path.relative_to(folder)) for _, _, path in found],
        class_names=names,
        own_pixels=_of_one_size(own),
        remarks=remarks,
    )


def sample_of_shards(
    shards: Iterable[Path], teacher: TeacherSpec, count: int, class_names: Sequence[str]
) -> ImageSample:
    """The same of verified shards.

    Raises:
        InvalidInput: if they hold no image.
        CorruptData: naming the sample that cannot be read.
    """
    data = ShardDataset(shards, num_classes=teacher.num_classes, in_chans=teacher.in_chans)
    if len(data) == 0:
        raise InvalidInput("the shards hold no image: give others")
    quotas = spread(np.bincount(data.labels, minlength=teacher.num_classes).tolist(), count)
    places = [
        int(members[place])
        for label, quota in enumerate(quotas)
        for members in [np.flatnonzero(data.labels == label)]
        for place in evenly(len(members), quota)
    ]
    pixels, own = list[Tensor](), list[Tensor | None]()
    for place in places:
        image = data[place][0]
        pixels.append(fitted(image, teacher.image_size))
        own.append(_in_own_size(image, teacher.image_size))
    return ImageSample(
        pixels=torch.stack(pixels),
        labels=torch.from_numpy(data.labels[places]),
        names=[data.name(place) for place in places],
        class_names=class_names,
        own_pixels=_of_one_size(own),
        remarks=_order_remarks(class_names, teacher),
    )


def few_shards(shards: Sequence[Shard], count: int) -> list[Shard]:
    """The first shards that bring what `sample_of_shards` would take of all: of each class its share of `count`."""
    samples = Counter[int]()
    for shard in shards:
        samples.update(shard.classes)
    missing = dict(zip(sorted(samples), spread([samples[label] for label in sorted(samples)], count), strict=True))
    chosen = []
    for shard in shards:
        if any(missing[label] > 0 and held for label, held in shard.classes.items()):
            chosen.append(shard)
            for label, held in shard.classes.items():
                missing[label] -= held
    return chosen


def require_classes(dataset: str, names: Sequence[str], teacher: TeacherSpec) -> None:
    """Raises `InvalidInput` unless a dataset's classes are as many as the teacher's."""
    if len(names) == teacher.num_classes:
        return
    raise InvalidInput(
        f"{dataset} has {len(names)} classes, but {teacher.name} tells {teacher.num_classes} apart: "
        f"{count_remedy(teacher.class_names, list(names))}, in a class_names.json beside the images"
    )


def spread(sizes: Sequence[int], count: int) -> list[int]:
    """The number of images to take of each class: as equal as they can be, `count` in all or all that there are.

    Args:
        sizes: number of images that each class has.
        count: of images to take.
    """
    quotas = [0] * len(sizes)
    left = min(count, sum(sizes))
    while left:
        unfinished = [n for n, size in enumerate(sizes) if quotas[n] < size]
        for place in evenly(len(unfinished), min(left, len(unfinished))):
            quotas[unfinished[place]] += 1
            left -= 1
    return quotas


def evenly(total: int, count: int) -> list[int]:
    """`count` places of `total`, evenly spread."""
    return [place * total // count for place in range(count)]


def _order_remarks(class_names: Sequence[str], teacher: TeacherSpec) -> list[str]:
    difference = other_order(class_names, teacher.class_names)
    return [] if difference is None else [f"the teacher names the same classes in another order: {difference}"]


def _opened(folder: Path, reading: Reading) -> tuple[object, list[str]]:
    try:
        return read_folder(folder, reading), []
    except typer.BadParameter as refused:
        # Where only the order is uncertain, this succeeds.
        if reading.class_order is not None:
            raise
        try:
            source = read_folder(folder, replace(reading, class_order=FolderOrder.name))
        except typer.BadParameter:
            raise refused from None
        return source, ["the order of the class folders is not certain: they are counted by name"]


def _chosen(
    source: ImageFolder, count: int, teacher: TeacherSpec, own: list[Tensor | None]
) -> list[tuple[Tensor, int, Path]]:
    """Pixels, label and path of the images that are taken; only those are opened.

    Args:
        own: gets each as `_in_own_size` has it.
    """
    found: list[tuple[Tensor, int, Path]] = []
    quotas = spread([len(files) for _, files in source.classes], count)
    for label, ((_, files), quota) in enumerate(zip(source.classes, quotas, strict=True)):
        first = evenly(len(files), quota)
        others = sorted({*range(len(files))} - {*first})  # in place of files that are no images
        taken = 0
        for place in [*first, *others]:
            if taken == quota:
                break
            image = read_image(files[place], teacher.in_chans)
            if image is None:
                source.skipped.add("no image", files[place])
                continue
            found.append((fitted(image, teacher.image_size), label, files[place]))
            own.append(_in_own_size(image, teacher.image_size))
            taken += 1
    return found


def read_image(path: Path, in_chans: Literal[1, 3]) -> Tensor | None:
    """The pixels (C, H, W), uint8, of an image file of any format that a dataset may be made of; None if it is none.

    Raises:
        typer.BadParameter: naming the file, if it is an image and cannot be read.
    """
    image = examine(path, SHORT_SIDE)
    return None if image is None else decode(image.stored(in_chans, SHORT_SIDE)[0], in_chans)


def _in_own_size(image: Tensor, size: int) -> Tensor | None:
    """The centre square of an image (C, H, W) that is smaller than `size`; None of one that is not."""
    side = min(image.shape[1:])
    return fitted(image, side) if side < size else None


def _of_one_size(images: Sequence[Tensor | None]) -> Tensor | None:
    smaller = [image for image in images if image is not None]
    if len(smaller) < len(images) or len({image.shape for image in smaller}) > 1:
        return None
    return torch.stack(smaller)


def fitted(image: Tensor, size: int, crop_pct: float = 1.0) -> Tensor:
    """An image (C, H, W), uint8, as (C, size, size): the centre of what has a shorter side of `size / crop_pct`."""
    if image.shape[1:] == (size, size):
        return image
    array = image.numpy()
    picture = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    resize = create_transform(size, crop_pct=crop_pct, interpolation="bicubic", normalize=False)
    return cast(Tensor, resize(picture))
