"""The picture of a job, composed from the strips of its shards."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dearkd.data.shard_files import Shard
from dearkd_synth.service.preview import COLUMNS, MAX_CLASSES, compose_preview, read_strip, write_strip

SIDE = 8
NAMES = [str(i) for i in range(100)]


def strip(labels: list[int], seed: int, channels: int = 3, side: int = SIDE) -> tuple[tuple[bytes, Shard], Tensor]:
    """What a shard of these labels leaves, and its images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (len(labels), channels, side, side), dtype=torch.uint8, generator=generator)
    counts = {label: labels.count(label) for label in sorted(set(labels))}
    shard = Shard(name="a.tar", bytes=1, sha256="0" * 64, samples=len(labels), classes=counts)
    return (write_strip(images, torch.tensor(labels)), shard), images


def compose(strips: list[tuple[bytes, Shard]], classes: int = 100, images_per_class: int = 100) -> bytes:
    grid = compose_preview(strips, NAMES, classes=classes, images_per_class=images_per_class)
    assert grid is not None
    return grid


def cells(png: bytes, side: int = 64) -> tuple[int, int]:
    """Rows and columns of a grid of square cells 2 px apart, whatever stands in its margin."""
    width, height = Image.open(io.BytesIO(png)).size
    return (height - 2) // (side + 2), (width - 2) // (side + 2)


def test_a_strip_gives_images_of_each_class_back_from_all_parts_of_the_shard() -> None:
    labels = [3, 1] * 80 + [7, 7, 9]
    (png, shard), images = strip(labels, 0)
    read, of = read_strip(png, shard)
    assert of == [1] * COLUMNS + [3] * COLUMNS + [7, 7, 9]
    places = {image.numpy().tobytes(): place for place, image in enumerate(images)}
    for label, count in ((1, 80), (3, 80), (7, 2), (9, 1)):
        found = [places[image.numpy().tobytes()] for image, one in zip(read, of, strict=True) if one == label]
        assert {labels[place] for place in found} == {label}
        of_class = [place for place in range(len(labels)) if labels[place] == label]
        ranks = [of_class.index(place) for place in found]
        tenth = count // 10
        for shown in (ranks, ranks[: COLUMNS // 2]) if count > COLUMNS else (ranks,):
            assert len(set(shown)) == len(shown) == min(count, len(shown))
            assert min(shown) <= tenth, "from the beginning"
            assert max(shown) >= count - 1 - tenth, "and the end"
            assert max(np.diff(sorted(shown)), default=1) <= 2 * count / len(shown), "and between"


def test_it_grows_with_each_shard_and_shows_the_newest_images() -> None:
    strips = [strip([0, 1], 0), strip([0, 1, 0, 1], 1), strip([2, 3], 2)]
    previews = [compose([one for one, _ in strips[: n + 1]]) for n in range(3)]
    assert [cells(preview) for preview in previews] == [(2, 1), (2, 3), (4, 3)]
    grid = np.asarray(Image.open(io.BytesIO(previews[1])))
    left = grid.shape[1] - (3 * 66 + 2)
    last = grid[2 : 2 + 64, left + 2 + 2 * 66 :][:, :64][::8, ::8]
    np.testing.assert_array_equal(last, strips[1][1][2].permute(1, 2, 0).numpy())


def test_many_classes_are_shown_up_to_a_limit() -> None:
    parts = [
        strip([label for label in range(first, first + 10) for _ in range(12)], first)[0] for first in range(0, 60, 10)
    ]
    assert cells(compose(parts[:1])) == (10, 12)
    assert cells(compose(parts[:2])) == (20, 8)
    assert cells(compose(parts)) == (MAX_CLASSES, 8)


def test_grey_images_are_shown_too() -> None:
    (png, shard), images = strip([0], 0, channels=1)
    read, _ = read_strip(png, shard)
    assert torch.equal(read[0], images[0])
    assert cells(compose([(png, shard)])) == (1, 1)


@pytest.mark.parametrize(("side", "classes"), [(256, 20), (384, 40), (1024, 1)])
def test_strips_of_large_images_are_read_and_shown(side: int, classes: int) -> None:
    """At full size 20 classes of 256 px would be 4096 × 5120 pixels, more than any reader takes."""
    (png, shard), images = strip([label for label in range(classes) for _ in range(2)], 0, side=side)
    read, labels = read_strip(png, shard)
    assert labels == [label for label in range(classes) for _ in range(2)]
    assert cells(compose([(png, shard)]), 112) == (classes, 2)
    last = Image.fromarray(images[-1].permute(1, 2, 0).numpy()).resize((112, 112), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(read[-1].permute(1, 2, 0).numpy(), np.asarray(last), atol=1)


@pytest.mark.parametrize(
    ("a_strip", "classes", "images_per_class", "taken"),
    [
        ([*range(20)] * 5, 20, 100, 2),  # 8 of each are shown
        ([*range(20)] * 5, 20, 5, 1),  # there will be no more
        ([*range(10)] * 5, 10, 100, 4),  # 16 of each are shown
        ([*range(40)] * 8, 1000, 100, 1),  # no more classes are shown
    ],
)
def test_no_more_strips_are_taken_than_the_grid_shows(
    a_strip: list[int], classes: int, images_per_class: int, taken: int
) -> None:
    asked: list[int] = []

    def strips() -> Iterator[tuple[bytes, Shard]]:
        for number in range(64):
            asked.append(number)
            yield strip(a_strip, number)[0]

    assert compose_preview(strips(), NAMES, classes=classes, images_per_class=images_per_class)
    assert len(asked) == taken


def test_without_a_strip_there_is_no_picture() -> None:
    assert compose_preview([], NAMES, classes=3, images_per_class=3) is None
