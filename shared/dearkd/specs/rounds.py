"""Division of a synthesis job's images into rounds, and of rounds into shards: arithmetic alone.

A round holds about as many images of each class as any other, and no shard holds images of two. So a job that ends
behind a complete round has all classes in equal numbers.
"""

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """The rounds of a job.

    Attributes:
        count: number of rounds, at most `images_per_class`.
        classes: number of classes.
        images_per_class: images of each class, in all rounds.
        classes_per_batch: classes of a group.
        shard_samples: the most samples of a shard.
    """

    count: int
    classes: int
    images_per_class: int
    classes_per_batch: int
    shard_samples: int

    def images_before(self, number: int) -> int:
        """The images of each class in the first `number` rounds."""
        return self.images_per_class * number // self.count

    def samples_before(self, number: int) -> int:
        """The samples of the first `number` rounds."""
        return self.images_before(number) * self.classes

    def of_sample(self, sample: int) -> int:
        """The round of a sample."""
        return ((sample // self.classes + 1) * self.count - 1) // self.images_per_class

    def sizes(self) -> list[int]:
        """The numbers of images of each class that rounds have: one, or two that differ by one."""
        low = self.images_per_class // self.count
        return [low, low + 1] if self.images_per_class % self.count else [low]

    def shard_length(self, size: int) -> int:
        """The samples of a full shard in a round of so many images of each class.

        Of several rounds those are whole class groups, if one fits: a size that suits one round would leave scraps of
        groups in another.
        """
        group = self.classes_per_batch * size
        if self.count == 1 or group > self.shard_samples:
            return self.shard_samples
        return self.shard_samples // group * group

    def shards_before(self, number: int) -> int:
        """The shards of the first `number` rounds."""
        low = self.images_per_class // self.count
        larger = self.images_before(number) - number * low
        return (number - larger) * self._shards_of(low) + larger * self._shards_of(low + 1)

    def of_shard(self, shard: int) -> int:
        """The round of a shard."""
        return bisect_right(range(1, self.count), shard, key=self.shards_before)

    def samples_of(self, shard: int) -> range:
        """The samples of a shard."""
        number = self.of_shard(shard)
        start, stop = self.samples_before(number), self.samples_before(number + 1)
        length = self.shard_length((stop - start) // self.classes)
        start += (shard - self.shards_before(number)) * length
        return range(start, min(start + length, stop))

    def _shards_of(self, size: int) -> int:
        return -(-size * self.classes // self.shard_length(size))
