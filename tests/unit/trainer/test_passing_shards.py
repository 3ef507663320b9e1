"""Shards that pass once, and image files that are read where they lie: the same figures as of the whole dataset."""

from collections import Counter
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dearkd.data.image_folder import ImageFolder, Reading, read_folder
from dearkd.data.shard_files import Sample, Shard, write_shard
from dearkd.errors import CorruptData
from dearkd.storage import file_cache
from dearkd.storage.file_cache import FileCache
from dearkd.vision.images import encode
from dearkd.vision.passing_shards import PassingShards
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.data.image_files import ImageFiles
from dearkd_trainer.evaluate.evaluation import Evaluation, evaluate
from tests.support.services import eventually

CLASSES, SIDE = 3, 8
COUNTS = [5, 3, 7, 4, 6]


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    """Shards of noise, of different lengths, in a folder."""
    (tmp_path / "stored").mkdir()
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, count in enumerate(COUNTS):
        pixels = torch.randint(256, (count, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        samples = (Sample(f"{n}", encode(x, "png"), "png", (n + number) % CLASSES, {}) for n, x in enumerate(pixels))
        found.append(write_shard(tmp_path / "stored" / f"train-{number:06d}.tar", samples))
    return found


class Source:
    """A place that shards are copied from into a cache; counts them, and the bytes of the cache at its fullest."""

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.root, self.room = folder / "stored", folder / "cache", room
        self.fetched: Counter[str] = Counter()
        self.peak = 0

    def open(self, shards: list[Shard]) -> PassingShards:
        return PassingShards(
            shards, self.obtain, lambda: FileCache(self.root, self.room), num_classes=CLASSES, in_chans=1
        )

    def obtain(self, shard: Shard, cache: FileCache) -> Path:
        def copy(path: Path) -> None:
            self.fetched[shard.name] += 1
            path.write_bytes((self.folder / shard.name).read_bytes())
            files = [file for file in self.root.rglob("*") if file.is_file() and file.suffix != ".lock"]
            self.peak = max(self.peak, sum(file.stat().st_size for file in files))

        return cache.obtain(copy, name=shard.name, sha256=shard.sha256, size=shard.bytes)


def figures(data: ShardDataset) -> Evaluation:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES)).eval()
    return evaluate(model, data, image_size=SIDE, mean=[0.5], std=[0.25], batch_size=4)


@pytest.mark.parametrize("room", [1.0, 1.9, 2.0, 100.0])
def test_the_figures_are_those_of_the_whole_dataset_and_each_shard_comes_once(
    shards: list[Shard], tmp_path: Path, room: float
) -> None:
    whole = ShardDataset([tmp_path / "stored" / s.name for s in shards], num_classes=CLASSES, in_chans=1)
    largest = max(shard.bytes for shard in shards)
    source = Source(tmp_path, int(room * largest))
    data = source.open(shards)
    assert len(data) == sum(COUNTS)
    assert not source.fetched
    assert astuple(figures(data)) == astuple(figures(whole))
    assert source.fetched == {shard.name: 1 for shard in shards}
    assert source.peak <= source.room
    assert data.labels.tolist() == whole.labels.tolist()
    assert [data.name(n) for n in range(len(data))] == [whole.name(n) for n in range(len(whole))]
    with pytest.raises(ValueError, match="1 loader workers"):
        data.hold([np.array([0])], workers=1)
    with pytest.raises(ValueError, match="no fingerprint"):
        data.fingerprint()


def test_a_shard_that_is_not_what_the_manifest_says_is_named_and_let_go(shards: list[Shard], tmp_path: Path) -> None:
    source = Source(tmp_path, 2**20)
    with pytest.raises(CorruptData, match=r"train-000002\.tar holds 7 samples, the manifest says 8"):
        figures(source.open([s.model_copy(update={"samples": 8}) if n == 2 else s for n, s in enumerate(shards)]))
    copies = list((tmp_path / "cache" / "files").iterdir())
    # The one ahead may be on its way still.
    eventually(lambda: all(not copy.exists() or file_cache._remove_unused(copy) for copy in copies))
    path = tmp_path / "stored" / shards[1].name
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(CorruptData, match=r"train-000001\.tar.*truncated"):
        figures(source.open(shards))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_files_are_the_dataset_that_their_shards_would_be(tmp_path: Path, channels: Any) -> None:
    noise = np.random.default_rng(0)
    for number, mode in enumerate(("L", "RGB", "LA", "RGBA", "P")):
        for name, suffix in (("cat", "png"), ("dog", "gif")):
            path = tmp_path / "images" / name / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(256, size=(6, 9, 3), dtype=np.uint8)).convert(mode).save(path)
    source = read_folder(tmp_path / "images", Reading(in_chans=channels))
    assert isinstance(source, ImageFolder)
    assert sum(source.check()) == 10
    samples = (source._sample(n, label, image, channels) for n, (label, image) in enumerate(source.images))
    write_shard(tmp_path / "packed.tar", samples)
    packed = ShardDataset([tmp_path / "packed.tar"], num_classes=2, in_chans=channels)
    read = ImageFiles(source.images, num_classes=2, in_chans=channels)
    assert len(read) == len(packed) == 10
    for found, expected in zip((read[n] for n in range(10)), (packed[n] for n in range(10)), strict=True):
        assert found[1] == expected[1]
        assert torch.equal(found[0], expected[0])
    assert read.name(0).endswith("0.png")
