"""Order and augmentation: exact epochs, and nothing that depends on who computes it."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import CorruptData
from dearkd.specs import AugmentationSpec
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.data.loader import (
    AugmentedImages,
    Batch,
    EpochBatches,
    create_loader,
    derive_seed,
    read,
    read_ahead,
)
from dearkd_trainer.data.recipe import train_transform
from dearkd_trainer.data.world import World
from dearkd_trainer.evaluate.evaluation import evaluate
from tests.support.programs import run_program
from tests.support.services import eventually


@settings(max_examples=50)
@given(count=st.integers(1, 200), batch_size=st.integers(1, 64), seed=st.integers(0, 2**62))
def test_every_sample_comes_once_an_epoch_in_even_batches(count: int, batch_size: int, seed: int) -> None:
    indices = np.arange(1000, 1000 + count)
    batches = list(EpochBatches(indices, batch_size, seed=seed, epochs=range(3)))
    steps = -(-count // batch_size)
    assert len(batches) == 3 * steps
    for epoch in range(3):
        own = batches[epoch * steps : (epoch + 1) * steps]
        assert sorted(index for batch in own for _, index, _ in batch) == list(indices)
        assert {number for batch in own for number, _, _ in batch} == {epoch}
        sizes = [len(batch) for batch in own]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


def test_epochs_are_shuffled_by_seed_and_number_and_can_start_anywhere() -> None:
    def order(seed: int, epochs: range) -> list[list[int]]:
        batches = EpochBatches(np.arange(50), 50, seed=seed, epochs=epochs)
        return [[index for _, index, _ in batch] for batch in batches]

    first, second, third = order(0, range(3))
    assert first != second
    assert order(0, range(1, 3)) == [second, third]
    assert order(1, range(1))[0] != first


@settings(max_examples=60)
@given(
    count=st.integers(1, 120),
    batch_size=st.integers(1, 40),
    processes=st.integers(1, 5),
    repeats=st.integers(0, 3),
    skip=st.integers(0, 3),
)
def test_processes_share_the_batches_of_one(
    count: int, batch_size: int, processes: int, repeats: int, skip: int
) -> None:
    def batches(world: World) -> list[list[tuple[int, int, int]]]:
        skipped = min(skip, -(-count // batch_size))
        order = EpochBatches(
            np.arange(count), batch_size, seed=1, epochs=range(4, 6), repeats=repeats, skip=skipped, world=world
        )
        made = list(order)
        assert len(order) == len(made)
        return made

    whole = batches(World())
    parts = [batches(World(rank, processes)) for rank in range(processes)]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert sorted(item for share in shares for item in share) == sorted(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 2
        even = len(batch) // 2 * 2
        if even // 2 >= processes:
            # Mixup's partners: the mirror image within the even part.
            partner = {batch[place]: batch[even - 1 - place] for place in range(even)}
            for share in shares:
                own = len(share) // 2 * 2
                assert all(partner[share[place]] == share[own - 1 - place] for place in range(own))
                assert share[own:] in ([], batch[even:])


@pytest.mark.parametrize(("processes", "workers", "shards"), [(2, 2, 1), (3, 1, 2)])
def test_every_sample_comes_once_an_epoch_with_fewer_shards_than_readers(
    tmp_path: Path, processes: int, workers: int, shards: int
) -> None:
    paths = []
    for shard in range(shards):
        pixels = torch.arange(11 * shard, 11 * (shard + 1)).mul(4).to(torch.uint8)
        samples = (Sample(f"{n:04d}", encode(x.view(1, 1, 1), "png"), "png", 0, {}) for n, x in enumerate(pixels))
        paths.append(tmp_path / f"{shard}.tar")
        write_shard(paths[-1], samples)
    dataset = ShardDataset(paths, num_classes=1, in_chans=1)
    seen: list[tuple[int, float]] = []
    for rank in range(processes):
        order = EpochBatches(np.arange(len(dataset)), 6, seed=2, epochs=range(2), world=World(rank, processes))
        loader = create_loader(dataset, only_pixels, order, seed=2, workers=workers, pin_memory=False)
        for step, (images, _) in enumerate(loader):
            seen += [(step // len(order.sizes), pixel) for pixel in images.flatten().tolist()]
    assert sorted(seen) == [(epoch, 4.0 * n) for epoch in range(2) for n in range(11 * shards)]


def only_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).float()


def test_repeated_augmentation_keeps_the_epochs_length() -> None:
    (batch,) = EpochBatches(np.arange(30), 30, seed=0, epochs=range(1), repeats=3)
    assert len(batch) == 30
    assert set(Counter(index for _, index, _ in batch).values()) == {3}
    assert len(set(batch)) == 30
    assert {repetition for _, _, repetition in batch} == {0, 1, 2}


def test_seeds_differ_in_every_part_and_place() -> None:
    seeds = {derive_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)} | {derive_seed(1, 2)}
    assert len(seeds) == 8**3 + 1
    assert all(0 <= seed < 2**63 for seed in seeds)


AUGMENTATION = AugmentationSpec(
    scale=[0.5, 1.0],
    ratio=[0.75, 1.33],
    hflip=0.5,
    aa="rand-m9-mstd0.5-inc1",
    color_jitter=0.0,
    reprob=0.5,
    mixup=0.0,
    cutmix=0.0,
    smoothing=0.1,
    aug_repeats=0,
    degrees=20.0,
    translate=0.1,
    shear=5.0,
)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_batches(bar_shard: Path, workers: int) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        dataset = ShardDataset([bar_shard], num_classes=3, in_chans=1)
        transform = train_transform(AUGMENTATION, image_size=16, mean=[0.4], std=[0.3])
        order = EpochBatches(np.arange(20), 8, seed=5, epochs=range(2))
        loader = create_loader(dataset, transform, order, seed=5, workers=workers, pin_memory=False)
        return [images for images, _ in loader]

    for alone, shared in zip(batches(0), batches(workers), strict=True):
        assert torch.equal(alone, shared)


def test_a_sample_is_augmented_anew_each_epoch_and_repetition(bar_shard: Path) -> None:
    dataset = ShardDataset([bar_shard], num_classes=3, in_chans=1)
    augmented = AugmentedImages(dataset, train_transform(AUGMENTATION, image_size=16, mean=[0.4], std=[0.3]), seed=0)
    first, label = augmented[(0, 4, 0)]
    assert label == 1
    assert torch.equal(first, augmented[(0, 4, 0)][0])
    assert not torch.equal(first, augmented[(1, 4, 0)][0])
    assert not torch.equal(first, augmented[(0, 4, 1)][0])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("reader", ["training", "evaluation"])
def test_a_damaged_image_is_named_in_one_line_whoever_reads_it(tmp_path: Path, workers: int, reader: str) -> None:
    path = tmp_path / "broken.tar"
    good = encode(torch.zeros(1, 8, 8, dtype=torch.uint8), "png")
    write_shard(path, (Sample(f"{n:04d}", b"no image" if n == 7 else good, "png", n % 2, {}) for n in range(12)))
    dataset = ShardDataset([path], num_classes=2, in_chans=1)
    order = EpochBatches(np.arange(12), 4, seed=0, epochs=range(1))

    def read_all() -> None:
        if reader == "training":
            list(create_loader(dataset, only_pixels, order, seed=0, workers=workers, pin_memory=False))
        else:
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
            evaluate(model, dataset, image_size=8, mean=[0.0], std=[1.0], batch_size=4, workers=workers)

    with pytest.raises(CorruptData) as caught:
        read_all()
    reason = "not a readable PNG, WebP or JPEG image: none is found in its 8 bytes, which begin with b'no image'"
    assert caught.value.message == f"broken.tar: sample '0007': {reason}"


class Following(Dataset[tuple[torch.Tensor, int]]):
    """Says whether the process that reads it watches whoever started it."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(1), int("follow" in {thread.name for thread in threading.enumerate()})


def test_a_process_that_reads_ends_with_whoever_started_it() -> None:
    ((_, following),) = read(Following(), num_workers=1)
    assert following.item() == 1


LATE = """
import multiprocessing, os, signal, time
from dearkd_trainer.data.loader import end_with_parent

def begin_late():
    parent = os.getppid()
    print(os.getpid(), flush=True)
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)
    end_with_parent(0)
    time.sleep(600)

multiprocessing.get_context("fork").Process(target=begin_late).start()
time.sleep(600)
"""


@pytest.mark.services
def test_a_loaders_process_whose_parent_was_gone_before_it_began_ends_too() -> None:
    ended = run_program(LATE)
    assert ended.returncode == -signal.SIGKILL
    late = int(ended.stdout)

    def is_gone() -> bool:
        try:
            return psutil.Process(late).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    try:
        eventually(is_gone)
    finally:
        with suppress(ProcessLookupError):
            os.kill(late, signal.SIGKILL)


def test_batches_are_received_ahead_of_the_step_that_wants_them() -> None:
    received: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in range(5):
            received.append(number)
            yield [torch.tensor(number)]
        raise OSError("the shard is gone")

    ahead = read_ahead(batches(), depth=2)
    assert next(ahead)[0] == 0
    eventually(lambda: received == [0, 1, 2])
    assert [int(next(ahead)[0]) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(OSError, match="the shard is gone"):
        next(ahead)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_who_stops_early_leaves_no_thread_behind() -> None:
    ahead = read_ahead(iter([[torch.tensor(number)] for number in range(9)]))
    assert next(ahead)[0] == 0
    assert [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
