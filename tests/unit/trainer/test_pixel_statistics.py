"""Mean and deviation of a set without a teacher: against NumPy, and of no more images than it is told."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import InvalidInput
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.service.data import pixel_statistics


def shard(path: Path, images: list[torch.Tensor], in_chans: Literal[1, 3]) -> ShardDataset:
    write_shard(path, (Sample(f"{n:05d}", encode(image, "png"), "png", 0, {}) for n, image in enumerate(images)))
    return ShardDataset([path], num_classes=1, in_chans=in_chans)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_they_are_those_of_all_pixels(tmp_path: Path, in_chans: Literal[1, 3]) -> None:
    generator = np.random.default_rng(0)
    # Of several sizes, and with a channel that is nearly one colour.
    pixels = [generator.integers(0, 256, (in_chans, 4 + n, 9), dtype=np.uint8) for n in range(6)]
    for image in pixels:
        image[0] = 250 + image[0] // 200
    data = shard(tmp_path / "a.tar", [torch.from_numpy(image) for image in pixels], in_chans)
    mean, std = pixel_statistics(data)
    together = np.concatenate([image.reshape(in_chans, -1) for image in pixels], axis=1) / 255
    assert mean == pytest.approx(together.mean(1), abs=5.1e-5)
    assert std == pytest.approx(together.std(1, ddof=1), abs=5.1e-5)


def test_of_one_colour_the_deviation_can_still_be_divided_by(tmp_path: Path) -> None:
    data = shard(tmp_path / "a.tar", [torch.full((1, 3, 3), 255, dtype=torch.uint8)], 1)
    assert pixel_statistics(data) == ([1.0], [1e-4])


@pytest.mark.parametrize(("count", "at_most", "looked_at"), [(7, 4, 4), (8, 4, 4), (3, 4, 3), (9, 1, 1)])
def test_no_more_images_are_read_than_asked_and_each_may_be_the_last(
    tmp_path: Path, count: int, at_most: int, looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard(tmp_path / "a.tar", [torch.zeros(1, 2, 2, dtype=torch.uint8)] * count, 1)
    read: list[int] = []
    plain = ShardDataset.__getitem__
    monkeypatch.setattr(ShardDataset, "__getitem__", lambda self, index: read.append(index) or plain(self, index))
    checks: list[int] = []
    pixel_statistics(data, lambda: checks.append(len(read)), images=at_most)
    assert len(set(read)) == len(read) == looked_at
    assert checks == list(range(looked_at))
    assert read[0] == 0
    assert at_most == 1 or read[-1] == count - 1


def test_of_no_image_there_are_none() -> None:
    with pytest.raises(InvalidInput, match="the dataset is empty"):
        pixel_statistics(ShardDataset([], num_classes=1, in_chans=1))
