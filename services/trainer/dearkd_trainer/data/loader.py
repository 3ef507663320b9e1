"""The order of samples and their augmentation: functions of (seed, epoch, sample) alone, in whichever process."""

import hashlib
import multiprocessing
import os
import random
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dearkd.errors import DearKDError
from dearkd.vision.shards import Indices, ShardDataset
from dearkd_trainer.data.world import World

Transform = Callable[[Image.Image], Tensor]
"""A function from an image (L or RGB) to the student's normalised input (C, H, W)."""

Batch = Sequence[Tensor]
"""Images (B, C, H, W), labels (B,), and the teacher's logits (B, K) if they are read."""

WEIGHTS, ORDER, SAMPLE, STEP = range(4)
"""Purposes of a seed; the second part of `derive_seed`."""


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that depends on all parts and their order."""
    digest = hashlib.blake2b(struct.pack(f"<{len(parts)}q", *parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed the CPU generators of torch, Python and NumPy: timm's transforms and Mixup draw from all three."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes as long as augmenting a small image
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the caller's global random generators after the block."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


class EpochBatches(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, sample number, repetition), epoch after epoch.

    Every sample comes once an epoch, and batches of an epoch differ in size by at most one: the remainder is spread,
    not dropped, and no step rests on a handful of images. With `repeats` (repeated augmentation, Hoffer et al., CVPR
    2020) an epoch is as long, but holds fewer samples, each so many times in a row, as in timm's RepeatAugSampler.

    With `window`, the shards come in a random order and are cut into windows of so many (or fewer, to make them even);
    samples are shuffled within each window only.

    Args:
        indices: the samples to train on.
        batch_size: the most images of a batch.
        seed: of the order.
        epochs: the numbers of the epochs to go through.
        repeats: augmentations of one sample in an epoch; 0 and 1 are the same.
        skip: steps of the first epoch that are done already.
        world: of the processes that share each batch, this one takes its part (`part_of`).
        shards: the shard of each of the dataset's samples.
        window: number of shards whose samples are shuffled together; None: all.
    """

    def __init__(
        self,
        indices: Indices,
        batch_size: int,
        *,
        seed: int,
        epochs: range,
        repeats: int = 0,
        skip: int = 0,
        world: World | None = None,
        shards: Indices | None = None,
        window: int | None = None,
    ) -> None:
        self.indices = indices
        self.window = window
        self._by_shard: list[Indices] = []
        if shards is not None and window is not None:
            own = shards[indices]
            ordered = np.argsort(own, kind="stable")
            self._by_shard = np.split(indices[ordered], np.flatnonzero(np.diff(own[ordered])) + 1)
        self.seed = seed
        self.epochs = epochs
        self.repeats = max(1, repeats)
        self.skip = skip
        self.world = world or World()
        steps = -(-len(indices) // batch_size)
        self.sizes = np.array([len(batch) for batch in np.array_split(indices, steps)], dtype=np.int64)
        """(steps of an epoch,) images of the whole batch of each."""

    def __len__(self) -> int:
        return len(self.sizes) * len(self.epochs) - self.skip

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for epoch, order, repetition, batch in self._steps():
            yield [(epoch, int(order[place]), int(repetition[place])) for place in part_of(batch, self.world)]

    def samples(self) -> Iterator[Indices]:
        """The sample numbers of each batch as a whole."""
        for _, order, _, batch in self._steps():
            yield order[batch]

    def _steps(self) -> Iterator[tuple[int, Indices, Indices, Indices]]:
        """Epoch, its order with repetitions, and the places in it of each batch."""
        for epoch in self.epochs:
            skip = self.skip if epoch == self.epochs.start else 0
            chance = np.random.default_rng(derive_seed(self.seed, ORDER, epoch))
            windows = [chance.permutation(window) for window in self._windows(chance)]
            order = np.concatenate([window.repeat(self.repeats)[: len(window)] for window in windows])
            repetition = np.concatenate([np.arange(len(window)) % self.repeats for window in windows])
            for batch in np.array_split(np.arange(len(order)), len(self.sizes))[skip:]:
                yield epoch, order, repetition, batch

    def _windows(self, chance: np.random.Generator) -> list[Indices]:
        if self.window is None or not self._by_shard:
            return [self.indices]
        count = -(-len(self._by_shard) // self.window)
        shuffled = np.array_split(chance.permutation(len(self._by_shard)), count)
        return [np.concatenate([self._by_shard[shard] for shard in window]) for window in shuffled]


def part_of(batch: Indices, world: World) -> Indices:
    """The part of a batch that one process takes; together the processes take each image once.

    Mixup mixes the first image with the last, the second with the last but one, and so on: pairs stay together, so
    that several processes mix as one does. The parts differ by two images at most. Where there are fewer pairs than
    processes, the parts are plain.
    """
    pairs = len(batch) // 2
    if world.size == 1 or pairs < world.size:
        return np.array_split(batch, world.size)[world.rank]
    mine = np.array_split(np.arange(pairs), world.size)[world.rank]
    alone = batch[2 * pairs :] if world.rank == world.size - 1 else batch[:0]
    return np.concatenate([batch[mine], batch[2 * pairs - 1 - mine[::-1]], alone])


class AugmentedImages(Dataset[tuple[Tensor, int] | tuple[Tensor, int, Tensor]]):
    """A dataset under a random transform that is seeded anew for every (epoch, sample, repetition).

    With `logits_before` an epoch, samples of earlier ones come with the teacher's logits (K,) that are stored beside
    them.
    """

    def __init__(self, dataset: ShardDataset, transform: Transform, seed: int, logits_before: int = 0) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.logits_before = logits_before

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[Tensor, int] | tuple[Tensor, int, Tensor]:
        epoch, number, _ = item
        image, label = self.dataset[number]
        seed_generators(derive_seed(self.seed, SAMPLE, *item))
        augmented = self.transform(to_picture(image))
        return (augmented, label, self.dataset.logits(number)) if epoch < self.logits_before else (augmented, label)


def to_picture(image: Tensor) -> Image.Image:
    """A Pillow image of pixels (C, H, W), uint8, C of 1 or 3."""
    array = image.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def create_loader(
    dataset: ShardDataset,
    transform: Transform,
    batches: EpochBatches,
    *,
    seed: int,
    workers: int,
    pin_memory: bool,
    logits_before: int = 0,
    held: Iterator[None] | None = None,
) -> Generator[Batch, None, None]:
    """Batches of normalised images (B, C, H, W), labels (B,), and before the epoch `logits_before` the teacher's stored
    logits (B, K), read ahead by the workers across epochs.

    No result depends on the number of workers. `held` is advanced before each batch goes to a worker. Raises as `read`.
    """
    augmented = AugmentedImages(dataset, transform, seed, logits_before)
    gated = (batch for batch, _ in zip(batches, held or repeat(None), strict=False))
    return read(augmented, batch_sampler=gated, num_workers=workers, pin_memory=pin_memory)


def read(dataset: Dataset[Any], **how: Any) -> Generator[Batch, None, None]:
    """The batches of torch's DataLoader, whose worker processes end with this one, or with the generator.

    Args:
        dataset: what to read.
        how: further arguments of DataLoader.

    Raises:
        DearKDError: as the dataset raised it in any process, naming a damaged image for instance. torch itself would
            add a worker's traceback to the message.
    """
    return _or_raised(
        iter(DataLoader(_Errors(dataset), collate_fn=_collate_or_error, worker_init_fn=end_with_parent, **how))
    )


class _Errors(Dataset[Any]):
    """A dataset that returns errors instead of raising them."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # those that are sampled by DataLoader have one

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.dataset[item]
        except DearKDError as error:
            return error


def _collate_or_error(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, DearKDError)), None) or default_collate(items)


def _or_raised(batches: Iterator[Any]) -> Generator[Batch, None, None]:
    try:
        for batch in batches:
            if isinstance(batch, DearKDError):
                raise batch
            yield batch
    except (ConnectionError, EOFError) as error:
        # Killed while it handed a batch over; torch looks for dead workers only where it waits for one.
        dead = [worker.pid for worker in getattr(batches, "_workers", ()) if _is_dead(worker)]
        if not dead:
            raise
        raise RuntimeError(f"DataLoader worker (pid(s) {', '.join(map(str, dead))}) exited unexpectedly") from error
    finally:
        # Now, not when the last traceback that holds them goes: until then torch would raise, wherever this process is
        # when any child of it ends, that a worker of these was killed.
        getattr(batches, "_shutdown_workers", lambda: None)()


def _is_dead(worker: BaseProcess) -> bool:
    worker.join(1.0)
    return not worker.is_alive()


def read_ahead(batches: Iterator[Batch], depth: int = 2) -> Generator[Batch, None, None]:
    """The same batches; a thread receives the next `depth` while the caller computes.

    A loader's batch that is ready still has to be received from the process that made it: 5 ms for the small images of
    a demo, a fifteenth of a step (benchmarks/RESULTS.md). Not for a loader without workers, which seeds the global
    generators, from which the caller draws. Close it to end the thread.

    Raises:
        BaseException: what `batches` raised, in its place.
    """
    reader = ThreadPoolExecutor(1, "read-ahead")
    try:
        ahead = deque(reader.submit(next, batches, None) for _ in range(depth))
        while (batch := ahead.popleft().result()) is not None:
            ahead.append(reader.submit(next, batches, None))
            yield batch
    finally:
        reader.shutdown(cancel_futures=True)


def end_with_parent(worker: int) -> None:
    """Make this loader process exit when the process that started it is gone.

    torch compares the parent's id with the one at the start, and so misses a parent that was gone by then.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="follow", daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
