"""The picture of a job: each shard leaves a strip of its samples, and the strips are composed into one grid.

So the picture grows while the job runs, whichever workers make the shards, and no shard is read again.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dearkd.data.shard_files import Shard
from dearkd.vision.images import decode, encode
from dearkd.vision.sample_grid import LARGEST_CELL, sample_grid
from dearkd_synth.engine.resizing import resize

COLUMNS = 16
MAX_CLASSES = 40


def write_strip(images: Tensor, labels: Tensor) -> bytes:
    """A PNG mosaic: a row for each class of a shard in ascending order, up to 16 of its images; the rest black.

    They are spread over the shard, since its first images are not like the others: a generator learns from batch to
    batch. Larger images are shrunk to 112 px, as the grid shows them, so that a strip has at most 1792 × 4480 pixels,
    under the 2^24 that every reader accepts.

    Args:
        images: (N, C, S, S), uint8.
        labels: (N,), class indices.
    """
    channels, side = images.shape[1], min(images.shape[2], LARGEST_CELL)
    classes = labels.unique().tolist()[:MAX_CLASSES]
    mosaic = torch.zeros(channels, side * len(classes), side * COLUMNS, dtype=torch.uint8)
    for row, label in enumerate(classes):
        of_class = (labels == label).nonzero()[:, 0]
        evenly = torch.linspace(0, len(of_class) - 1, min(len(of_class), COLUMNS)).round().long()
        # Every second one first: a grid of half as many columns shows the beginning of a row.
        shown = images[of_class[torch.cat([evenly[::2], evenly[1::2]])]]
        for column, image in enumerate(resize(shown.float(), side).round().to(torch.uint8)):
            mosaic[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = image
    return encode(mosaic, "png")


def read_strip(strip: bytes, shard: Shard) -> tuple[list[Tensor], list[int]]:
    """The images (C, s, s) and labels of a strip; `shard` gives the number of images of each class."""
    mosaic = decode(strip)
    side = mosaic.shape[2] // COLUMNS
    images: list[Tensor] = []
    labels: list[int] = []
    for row, (label, count) in enumerate(sorted(shard.classes.items())[:MAX_CLASSES]):
        for column in range(min(count, COLUMNS)):
            top, left = row * side, column * side
            images.append(mosaic[:, top : top + side, left : left + side])
            labels.append(label)
    return images, labels


def compose_preview(
    strips: Iterable[tuple[bytes, Shard]], names: Sequence[str], *, classes: int, images_per_class: int
) -> bytes | None:
    """The grid of what is done so far, as PNG: classes as rows, samples of each, of the first strips, as columns.

    Half as many columns where there are more than ten classes. No more strips are taken than it needs.

    Args:
        strips: from `write_strip`, each with its shard.
        names: of the classes, by index.
        classes: number of classes of the finished dataset.
        images_per_class: likewise.

    Returns:
        None if there is no strip.
    """
    rows = min(classes, MAX_CLASSES)
    full = min(images_per_class, _columns(rows))
    images: list[Tensor] = []
    labels: list[int] = []
    seen: Counter[int] = Counter()
    for strip, shard in strips:
        for image, label in zip(*read_strip(strip, shard), strict=True):
            if seen[label] < COLUMNS and (label in seen or len(seen) < MAX_CLASSES):
                seen[label] += 1
                images.append(image.clone())  # a view would keep the whole strip
                labels.append(label)
        if len(seen) == rows and min(seen.values()) >= full:
            break
    if not images:
        return None
    return sample_grid(
        torch.stack(images), torch.tensor(labels), rows=MAX_CLASSES, columns=_columns(len(seen)), names=names
    )


def _columns(rows: int) -> int:
    return COLUMNS if rows <= 10 else COLUMNS // 2
