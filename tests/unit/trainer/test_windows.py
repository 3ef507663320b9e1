"""Shards that are shuffled a few at a time: the order, and runs on a cache that is smaller than the dataset."""

import io
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from dearkd.data.manifests import DatasetManifest, count_classes
from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import CorruptData
from dearkd.settings import Settings
from dearkd.storage import file_cache
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset
from dearkd.vision.stored_shards import StoredShards
from dearkd_trainer.data.loader import ORDER, EpochBatches, create_loader, derive_seed
from dearkd_trainer.data.world import World
from dearkd_trainer.train.trainer import TrainingResult
from tests.support.bars import CLASSES, SIDE, MakeSpec, MakeTrainer, bars, curve, stop_at

pytestmark = pytest.mark.slow

SHARDS = 6
Store = Callable[..., DatasetManifest]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any),
    window=st.integers(1, 10),
    batch_size=st.integers(1, 20),
    processes=st.integers(1, 3),
    seed=st.integers(0, 2**62),
    skip=st.integers(0, 3),
    chance=st.randoms(use_true_random=False),
)
def test_an_epoch_is_exact_and_mixes_within_windows_only(
    sizes: list[int], window: int, batch_size: int, processes: int, seed: int, skip: int, chance: Any
) -> None:
    shards = np.repeat(np.arange(len(sizes)), sizes)
    # Not all samples of a shard are trained on, and of some none.
    indices = np.array(sorted(chance.sample(range(len(shards)), chance.randint(1, len(shards)))))
    skip = min(skip, -(-len(indices) // batch_size) - 1)

    def batches(rank: int, size: int, skip: int = 0) -> EpochBatches:
        world = World(rank, size)
        return EpochBatches(
            indices, batch_size, seed=seed, epochs=range(2, 4), skip=skip, world=world, shards=shards, window=window
        )

    whole = list(batches(0, 1))
    assert list(batches(0, 1, skip)) == whole[skip:]
    assert [list(numbers) for numbers in batches(0, 1).samples()] == [[n for _, n, _ in batch] for batch in whole]
    for step, parts in enumerate(zip(*(batches(rank, processes) for rank in range(processes)), strict=True)):
        assert sorted(item for part in parts for item in part) == sorted(whole[step])
    for epoch in (2, 3):
        order = [number for batch in whole for found, number, _ in batch if found == epoch]
        assert sorted(order) == indices.tolist()
        # Of no more shards than a window has are there samples before and samples after.
        spans = [np.flatnonzero(shards[order] == shard)[[0, -1]] for shard in set(shards[order])]
        for place in range(len(order)):
            assert sum(first <= place <= last for first, last in spans) <= window


def test_windows_mix_their_shards_and_each_epoch_has_others() -> None:
    shards = np.repeat(np.arange(8), 50)

    def epoch(number: int, seed: int = 0) -> np.ndarray:
        batches = EpochBatches(
            np.arange(400), 400, seed=seed, epochs=range(number, number + 1), shards=shards, window=2
        )
        (order,) = batches.samples()
        return order

    order = epoch(0)
    pairs = [set(shards[part].tolist()) for part in np.split(order, 4)]
    assert [len(pair) for pair in pairs] == [2] * 4
    for part in np.split(shards[order], 4):
        # 99 neighbours, of which about half are of the same shard.
        assert 25 < (part[1:] == part[:-1]).sum() < 75
    assert (epoch(0) == order).all()
    for other in (epoch(1), epoch(0, seed=1)):
        assert [set(shards[part].tolist()) for part in np.split(other, 4)] != pairs


@pytest.mark.parametrize("repeats", [0, 3])
@pytest.mark.parametrize("shards", [None, np.repeat(np.arange(5), 10)])
def test_without_windows_the_order_is_one_permutation_of_all(repeats: int, shards: np.ndarray | None) -> None:
    indices = np.arange(0, 50, 2)
    batches = EpochBatches(indices, 10, seed=7, epochs=range(1, 3), repeats=repeats, shards=shards)
    expected = []
    for epoch in (1, 2):
        order = np.random.default_rng(derive_seed(7, ORDER, epoch)).permutation(indices)
        expected += order.repeat(max(1, repeats))[:25].tolist()
    assert np.concatenate(list(batches.samples())).tolist() == expected


def test_repetitions_stay_in_their_window_and_every_shard_is_seen() -> None:
    shards = np.repeat(np.arange(4), 6)
    (batch,) = EpochBatches(np.arange(24), 24, seed=0, epochs=range(1), repeats=3, shards=shards, window=2)
    assert len(set(batch)) == 24
    assert set(Counter(number for _, number, _ in batch).values()) == {3}
    for window in (batch[:12], batch[12:]):
        assert len({shards[number] for _, number, _ in window}) <= 2


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(Settings(storage_url=f"file://{tmp_path}/storage"))


@pytest.fixture
def store(storage: Storage, tmp_path: Path) -> Store:
    """Stores the bars, ten a shard, with logits beside them."""

    def make(name: str = "ds-bars", first: int = 0, count: int = 60) -> DatasetManifest:
        shards = []
        file = io.BytesIO()
        np.save(file, np.arange(CLASSES, dtype=np.float16))
        samples = [
            Sample(f"{n:04d}", encode(image, "png"), "png", label, {}, {"logits.npy": file.getvalue()})
            for n, (image, label) in enumerate(bars(first + count)[first:])
        ]
        (tmp_path / name).mkdir()
        for number in range(0, count, 10):
            path = tmp_path / name / f"train-{number // 10:06d}.tar"
            shards.append(write_shard(path, samples[number : number + 10]))
            storage.put(f"datasets/{name}/{path.name}", path)
        return DatasetManifest(
            id=name,
            created_at=datetime.now(UTC),
            num_samples=count,
            num_classes=CLASSES,
            image_size=SIDE,
            in_chans=1,
            classes=count_classes(shards, None, CLASSES),
            shards=shards,
            prefix=f"datasets/{name}",
        )

    return make


@pytest.fixture
def sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of the cache at the end of each download, when they are most."""
    found: list[int] = []
    verify = file_cache.verify_copy

    def measure(*args: Any, **kwargs: Any) -> None:
        found.append(sum(file_cache._bytes(tmp_path / "cache" / part) for part in ("files", "scratch")))
        verify(*args, **kwargs)

    monkeypatch.setattr(file_cache, "verify_copy", measure)
    return found


def stored(storage: Storage, manifest: DatasetManifest, folder: Path, room: int) -> StoredShards:
    """With a cache for so many shards."""
    bound = room * manifest.shards[0].bytes
    return StoredShards(storage, manifest, lambda: FileCache(folder, bound), num_classes=CLASSES, in_chans=1)


def local(manifest: DatasetManifest, tmp_path: Path) -> ShardDataset:
    paths = [tmp_path / manifest.id / shard.name for shard in manifest.shards]
    return ShardDataset(paths, num_classes=CLASSES, in_chans=1)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).float()


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (1, 2), (2, 1)])
def test_whoever_reads_the_batches_are_those_of_the_files(
    storage: Storage, store: Store, sizes: list[int], tmp_path: Path, workers: int, processes: int
) -> None:
    manifest = store()
    files, passing = local(manifest, tmp_path), stored(storage, manifest, tmp_path / "cache", 2)
    del sizes[:]
    for rank in range(processes):

        def read(data: ShardDataset, workers: int, rank: int = rank) -> list[list[torch.Tensor]]:
            order = EpochBatches(
                np.arange(60),
                4,
                seed=3,
                epochs=range(2),
                skip=5,
                world=World(rank, processes),
                shards=data.shards,
                window=1,
            )
            with closing(data.hold(order.samples(), workers=workers)) as held:
                batches = create_loader(
                    data, as_tensor, order, seed=3, workers=workers, pin_memory=False, logits_before=3, held=held
                )
                return [list(batch) for batch in batches]

        expected = read(files, 0)
        found = read(passing, workers)
        assert len(found) == len(expected) == 25
        for mine, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert sizes
    # Batches that workers still read may hold a third shard.
    assert max(sizes) <= (2 + (workers > 0)) * manifest.shards[0].bytes


@pytest.fixture
def make_windowed(make_spec: MakeSpec) -> MakeSpec:
    return lambda **posted: make_spec(**{"shuffle_shards": 2, "optimizer": {"model_ema_half_life": 1.0}} | posted)


def same(result: TrainingResult, expected: TrainingResult) -> None:
    assert curve(result.history) == curve(expected.history)
    weights = load_file(expected.weights)
    for name, tensor in load_file(result.weights).items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 16), (2, 3)])
def test_a_run_on_a_small_cache_is_that_on_a_large_one_and_goes_on_in_mid_epoch(
    make_windowed: MakeSpec,
    make_trainer: MakeTrainer,
    storage: Storage,
    store: Store,
    sizes: list[int],
    tmp_path: Path,
    workers: int,
    batch_size: int,
) -> None:
    data, held_out = store(), store("ds-held-out", first=60, count=40)
    files = {"dataset": local(data, tmp_path), "eval_dataset": local(held_out, tmp_path)}
    whole = make_trainer(make_windowed(batch_size=batch_size), **files, directory=tmp_path / "whole").fit()
    spec = make_windowed(batch_size=batch_size, workers=workers, checkpoint_seconds=1e-9)
    # Two windows of two; evaluation takes two, and with workers two for each.
    room = 4 + max(2, 2 * workers)
    passing = {
        name: stored(storage, manifest, tmp_path / "cache", room)
        for name, manifest in (("dataset", data), ("eval_dataset", held_out))
    }
    stop = 2 * -(-54 // batch_size) + 2
    with pytest.raises(KeyboardInterrupt):
        make_trainer(spec, **passing, on_step=stop_at(stop)).fit()
    # All is let go: another may have the room.
    with FileCache(tmp_path / "cache", 0).scratch("x"):
        assert not list((tmp_path / "cache" / "files").iterdir())
    done: list[int] = []
    result = make_trainer(spec, **passing, on_step=lambda step, _: done.append(step)).fit()
    assert done[0] == stop
    same(result, whole)
    assert result.evaluation == whole.evaluation
    assert max(sizes) <= room * max(shard.bytes for shard in (*data.shards, *held_out.shards))


def test_a_shard_that_is_altered_in_the_middle_of_a_run_ends_it(
    make_windowed: MakeSpec, make_trainer: MakeTrainer, storage: Storage, store: Store, tmp_path: Path
) -> None:
    manifest = store()

    def alter(step: int, _: int) -> None:
        for shard in manifest.shards:
            storage.put(f"{manifest.prefix}/{shard.name}", bytes(shard.bytes))

    data = stored(storage, manifest, tmp_path / "cache", 4)
    with pytest.raises(CorruptData, match=r"train-00000\d\.tar"):
        make_trainer(make_windowed(), dataset=data, on_step=alter).fit()
