"""The picture of a job: each shard leaves a strip of its samples, and the strips are composed into one grid.

So the picture grows while the job runs, whoever makes the shards, without reading any shard again.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dearkd.datasets import Shard
from dearkd.vision.images import decode, encode
from dearkd_synth.quality import sample_grid

COLUMNS = 16
MAX_CLASSES = 40


def write_strip(images: Tensor, labels: Tensor) -> bytes:
    """A PNG mosaic: a row for each class of a shard in ascending order, up to 16 of its images; the rest black.

    Args:
        images: (N, C, S, S), uint8.
        labels: (N,), class indices.
    """
    channels, side = images.shape[1], images.shape[2]
    classes = labels.unique().tolist()[:MAX_CLASSES]
    mosaic = torch.zeros(channels, side * len(classes), side * COLUMNS, dtype=torch.uint8)
    for row, label in enumerate(classes):
        for column, image in enumerate(images[labels == label][:COLUMNS]):
            mosaic[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = image
    return encode(mosaic, "png")


def read_strip(strip: bytes, shard: Shard, image_size: int) -> tuple[list[Tensor], list[int]]:
    """The images (C, S, S) and labels of a strip; `shard` says how many of each class there were."""
    mosaic = decode(strip)
    images: list[Tensor] = []
    labels: list[int] = []
    for row, (label, count) in enumerate(sorted(shard.classes.items())[:MAX_CLASSES]):
        for column in range(min(count, COLUMNS)):
            top, left = row * image_size, column * image_size
            images.append(mosaic[:, top : top + image_size, left : left + image_size])
            labels.append(label)
    return images, labels


def compose_preview(strips: Iterable[tuple[bytes, Shard]], image_size: int, names: Sequence[str]) -> bytes:
    """The grid of what is done so far, as PNG: classes as rows, the first samples of each as columns.

    Half as many columns where there are more than ten classes.

    Args:
        strips: as written, each with the shard that it is of.
        image_size: side of an image in a strip, in pixels.
        names: of the classes, by index.
    """
    images: list[Tensor] = []
    labels: list[int] = []
    seen: Counter[int] = Counter()
    for strip, shard in strips:
        for image, label in zip(*read_strip(strip, shard, image_size), strict=True):
            if seen[label] < COLUMNS and (label in seen or len(seen) < MAX_CLASSES):
                seen[label] += 1
                images.append(image)
                labels.append(label)
    columns = COLUMNS if len(seen) <= 10 else COLUMNS // 2
    return sample_grid(torch.stack(images), torch.tensor(labels), rows=MAX_CLASSES, columns=columns, names=names)
