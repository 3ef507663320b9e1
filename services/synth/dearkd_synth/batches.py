"""The samples of each shard, and the cutting of a shard into batches: arithmetic alone.

Samples are ordered by round (`SynthesisSpec.rounds`, one by default), in it by class group (`classes_per_batch` classes
together), and inside a group class by class in turn, so that every run of a group holds its classes in equal numbers:
the P×K batches. A shard is a run of `shard_samples` samples of a round; a class's images lie together in few shards.
"""

from itertools import pairwise

from dearkd.specs import SynthesisSpec


def sample_label(spec: SynthesisSpec, sample: int) -> int:
    """The class index of a sample, 0 ≤ sample < num_samples.

    Raises:
        IndexError: if there is no such sample.
    """
    if not 0 <= sample < spec.num_samples:
        raise IndexError(f"sample {sample}: there are {spec.num_samples}")
    start, group_samples = _groups(spec, sample)
    group, place = divmod(sample - start, group_samples)
    first = group * spec.classes_per_batch
    classes = spec.classes[first : first + spec.classes_per_batch]
    return classes[place % len(classes)]


def shard_samples(spec: SynthesisSpec, shard: int) -> range:
    """The samples of a shard.

    Raises:
        IndexError: if there is no such shard.
    """
    if not 0 <= shard < spec.num_shards:
        raise IndexError(f"shard {shard}: there are {spec.num_shards}")
    return spec.cut_in_rounds.samples_of(shard)


def shard_batches(spec: SynthesisSpec, shard: int) -> list[range]:
    """The batches of a shard, as ranges of samples, none over `batch_size` and none with classes of two groups.

    Where a shard's part of a group is no multiple of `batch_size`, its batches are made equally long rather than the
    last one short: the statistics of a very small batch are too noisy to match.

    Raises:
        IndexError: if there is no such shard.
    """
    samples = shard_samples(spec, shard)
    first, group_samples = _groups(spec, samples.start)
    batches: list[range] = []
    start = samples.start
    while start < samples.stop:
        stop = min(first + ((start - first) // group_samples + 1) * group_samples, samples.stop)
        count = -(-(stop - start) // spec.batch_size)
        cuts = [start + (stop - start) * i // count for i in range(count + 1)]
        batches += [range(low, high) for low, high in pairwise(cuts)]
        start = stop
    return batches


def _groups(spec: SynthesisSpec, sample: int) -> tuple[int, int]:
    """The first sample of a sample's round, and the samples of a class group in it."""
    rounds = spec.cut_in_rounds
    number = rounds.of_sample(sample)
    before, behind = rounds.images_before(number), rounds.images_before(number + 1)
    return before * rounds.classes, (behind - before) * spec.classes_per_batch
