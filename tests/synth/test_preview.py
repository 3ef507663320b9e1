"""The picture of a job, composed from the strips of its shards."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dearkd.datasets import Shard
from dearkd_synth.preview import COLUMNS, MAX_CLASSES, compose_preview, read_strip, write_strip

SIDE = 8
NAMES = [str(i) for i in range(100)]


def strip(labels: list[int], seed: int, channels: int = 3) -> tuple[tuple[bytes, Shard], Tensor]:
    """What a shard of these labels leaves, and its images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (len(labels), channels, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    counts = {label: labels.count(label) for label in sorted(set(labels))}
    shard = Shard(name="a.tar", bytes=1, sha256="0" * 64, samples=len(labels), classes=counts)
    return (write_strip(images, torch.tensor(labels)), shard), images


def cells(png: bytes) -> tuple[int, int]:
    """Rows and columns of a grid of 64 px cells 2 px apart, whatever stands in its margin."""
    width, height = Image.open(io.BytesIO(png)).size
    return (height - 2) // 66, (width - 2) // 66


def test_a_strip_gives_the_first_images_of_each_class_back() -> None:
    labels = [3, 1] * 20 + [7]
    (png, shard), images = strip(labels, 0)
    read, of = read_strip(png, shard, SIDE)
    assert of == [1] * COLUMNS + [3] * COLUMNS + [7]
    for label in (1, 3, 7):
        mine = [image for image, theirs in zip(read, of, strict=True) if theirs == label]
        expected = images[torch.tensor(labels) == label][:COLUMNS]
        assert torch.equal(torch.stack(mine), expected)


def test_it_grows_with_each_shard_and_shows_the_newest_images() -> None:
    strips = [strip([0, 1], 0), strip([0, 1, 0, 1], 1), strip([2, 3], 2)]
    previews = [compose_preview([one for one, _ in strips[: n + 1]], SIDE, NAMES) for n in range(3)]
    assert [cells(preview) for preview in previews] == [(2, 1), (2, 3), (4, 3)]
    grid = np.asarray(Image.open(io.BytesIO(previews[1])))
    left = grid.shape[1] - (3 * 66 + 2)
    last = grid[2 : 2 + 64, left + 2 + 2 * 66 :][:, :64][::8, ::8]
    np.testing.assert_array_equal(last, strips[1][1][2].permute(1, 2, 0).numpy())


def test_many_classes_are_shown_up_to_a_limit() -> None:
    parts = [
        strip([label for label in range(first, first + 10) for _ in range(12)], first)[0] for first in range(0, 60, 10)
    ]
    assert cells(compose_preview(parts[:1], SIDE, NAMES)) == (10, 12)
    assert cells(compose_preview(parts[:2], SIDE, NAMES)) == (20, 8)
    assert cells(compose_preview(parts, SIDE, NAMES)) == (MAX_CLASSES, 8)


def test_grey_images_are_shown_too() -> None:
    (png, shard), images = strip([0], 0, channels=1)
    read, _ = read_strip(png, shard, SIDE)
    assert torch.equal(read[0], images[0])
    assert cells(compose_preview([(png, shard)], SIDE, NAMES)) == (1, 1)
