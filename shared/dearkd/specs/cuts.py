"""Division of a synthesis job's samples into shards and batches: arithmetic that the API can check without torch.

Samples stand in class groups of `classes_per_batch` classes (the last may have fewer), and a shard is a run of
`shard_samples` of them. So a shard holds *parts* of groups, and a part is cut into batches of nearly equal length.
"""

import math
from collections.abc import Iterator

from dearkd.specs.batches import smallest_batch
from dearkd.specs.teacher import TeacherSpec

MAX_SHARD_BYTES = 5 * 2**30
"""The most bytes of a shard: it is created by one conditional PUT, and S3 allows no larger one."""
TAR_BLOCK = 512


def parts(
    classes: int, *, images_per_class: int, classes_per_batch: int, shard_samples: int
) -> Iterator[tuple[int, int]]:
    """The parts that occur, as (classes of the group, samples): each sort at least once, but not as often as it does.

    Args:
        classes: number of classes of the job.
        images_per_class: number of images of each.
        classes_per_batch: number of classes of a group.
        shard_samples: number of samples of a full shard.
    """
    group = classes_per_batch * images_per_class
    groups, rest = divmod(classes, classes_per_batch)
    # Where the shards' ends fall in a group repeats itself after so many groups.
    for number in range(min(groups, shard_samples // math.gcd(group, shard_samples))):
        for samples in _runs(number * group, group, shard_samples):
            yield classes_per_batch, samples
    if rest:
        for samples in _runs(groups * group, rest * images_per_class, shard_samples):
            yield rest, samples


def _runs(start: int, length: int, shard_samples: int) -> Iterator[int]:
    """The lengths into which the shards' ends cut a run of samples; whole shards in its middle are given once."""
    first = min(length, shard_samples - start % shard_samples)
    yield first
    left = length - first
    if left >= shard_samples:
        yield shard_samples
    if left % shard_samples:
        yield left % shard_samples


def thinnest_batch(
    classes: int, *, images_per_class: int, classes_per_batch: int, batch_size: int, shard_samples: int
) -> float:
    """The mean number of images per class in the job's batch that has the fewest.

    At 1 or less, some batch has at most one image of each class and comes first of its group in its shard.
    """
    cut = parts(
        classes, images_per_class=images_per_class, classes_per_batch=classes_per_batch, shard_samples=shard_samples
    )
    return min(smallest_batch(samples, batch_size) / group for group, samples in cut)


def default_shard_samples(
    target: int, max_samples: int, *, classes: int, images_per_class: int, classes_per_batch: int, batch_size: int
) -> int:
    """Choose a shard's size: as many whole class groups as fit into `target` samples, else a part of one group.

    A group within one shard has one feature bank.

    A round number may leave a group a last part of a few images, too few for meaningful statistics. So, of the sizes
    between half of `target` and `target`, those are preferred whose batches are all at least a quarter full, then one
    that divides a group, then the one whose smallest batch is largest. If each size leaves a batch with one image of
    each class, the whole group is the shard, up to ten times `target` [R].

    Args:
        target: the most samples that a shard should have.
        max_samples: the most samples that fit into a shard.
        classes: the job's.
        images_per_class: the job's.
        classes_per_batch: the job's.
        batch_size: the job's.
    """
    group = classes_per_batch * images_per_class
    if group <= target:
        return target // group * group
    largest = target // classes_per_batch  # images of each class in a shard
    if largest < 2:
        return target

    def thickness(size: int) -> float:
        return thinnest_batch(
            classes,
            images_per_class=images_per_class,
            classes_per_batch=classes_per_batch,
            batch_size=batch_size,
            shard_samples=size,
        )

    def merits(share: int) -> tuple[float, bool, float]:
        thinnest = thickness(classes_per_batch * share)
        return min(thinnest, batch_size / classes_per_batch / 4), images_per_class % share == 0, thinnest

    shares = range(largest, largest // 2, -1)
    even = [share for share in shares if images_per_class % share == 0]
    size = classes_per_batch * max([*even[:1], *shares[:: max(1, largest // 64)]], key=merits)
    whole = classes > classes_per_batch and group <= min(10 * target, max_samples)
    return group if whole and thickness(size) <= 1 else size


def sample_bytes(teacher: TeacherSpec, *, logits: bool) -> int:
    """The most bytes that a sample may take in a shard: image, `.cls` and `.json`, each after a header and padded.

    Synthetic images compress little. An image of noise takes its pixels and what the format adds: up to 1/128 and 700
    bytes, as measured on PNG, WebP and JPEG of 8 to 1024 px.

    Args:
        teacher: gives the size of images, and the number of classes.
        logits: whether `.logits.npy` stands beside them: 2 bytes a class after a header of 128.
    """
    pixels = teacher.image_size**2 * (1 if teacher.in_chans == 1 else 3)
    members = 3
    blocks = members * 2 - 1 + -(-(pixels + pixels // 128 + 768) // TAR_BLOCK)
    if logits:
        blocks += 1 + -(-(2 * teacher.num_classes + 128) // TAR_BLOCK)
    return blocks * TAR_BLOCK
