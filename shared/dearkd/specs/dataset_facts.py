"""Facts about a dataset for a training run's defaults and checks, such as the number of images it trains on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dearkd.choices import ClassOrder


class TrainedImages(NamedTuple):
    """Bounds of the number of images that a run trains on: the seed rounds `holdout` of each class up or down."""

    minimum: int
    expected: int
    """The mean over all seeds, rounded."""
    maximum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """Facts about a dataset, finished or still being made, that a training spec's defaults and checks need."""

    num_samples: int
    num_classes: int
    image_size: int | None
    """Side in pixels; None where images differ in size or are not square."""
    in_chans: int
    synthetic: bool
    mirrored: bool | None
    """True if a mirrored image still shows its class; None: unknown, and for the teacher to say."""
    teacher: str | None = None
    stored_logits: bool = False
    """True if each sample has its teacher's logits."""
    class_samples: tuple[int, ...] = ()
    """Samples of each class; empty where unknown, and then the classes are taken to be of one size."""
    class_names: tuple[str, ...] | None = None
    """In the order of labels."""
    class_order: ClassOrder | None = None
    """The order of the labels, as the dataset's maker stated it; None: not stated."""

    def trained_images(self, fraction: float, holdout: float) -> TrainedImages:
        """Count the images that `dearkd.vision.shards.split` leaves to train on.

        Exact, with equal bounds, where `holdout` is 0, or whole in every class, or all but one of it; else a class may
        give an image more or less. Where `class_samples` is unknown, this is an estimate.

        Args:
            fraction: of every class that is used, in (0, 1].
            holdout: of the fraction, in [0, 1), that is not trained on.
        """
        kept = [kept_samples(samples, fraction) for samples in self.class_samples or self._even_classes() if samples]
        return TrainedImages(
            minimum=sum(max(1, count - math.ceil(count * holdout)) for count in kept),
            expected=round(math.fsum(max(1.0, count - count * holdout) for count in kept)),
            maximum=sum(max(1, count - math.floor(count * holdout)) for count in kept),
        )

    def _even_classes(self) -> Sequence[int]:
        each, more = divmod(self.num_samples, self.num_classes)
        return [each + 1] * more + [each] * (self.num_classes - more)


def kept_samples(samples: int, fraction: float) -> int:
    """The number of a class's samples that a fraction of the dataset keeps: at least one."""
    return max(1, round(fraction * samples))
