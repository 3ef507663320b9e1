"""Statistics of a shard's finished batches, so that small batches match the teacher's as one large batch does."""

import torch

from dearkd_synth.objective.batch_norm import Earlier, Statistics, mixed


class StatisticsMemory:
    """Running averages of the batch statistics, for each phase.

    The teacher is in eval mode, so that the statistics of several batches together are those of one large batch.

    Args:
        images: at most so many earlier images count beside a batch; more are averaged exponentially. 0 keeps none.
    """

    def __init__(self, images: int) -> None:
        self._most = images
        self._kept: dict[int, tuple[Statistics, int]] = {}

    def beside(self, phase: int, images: int, *, tensors: bool = False) -> Earlier | None:
        """What a batch of so many images has to be seen together with in a phase; None where there is nothing yet.

        `tensors`: the share as a tensor too, since what is compiled is compiled anew for another number.
        """
        if phase not in self._kept:
            return None
        statistics, kept = self._kept[phase]
        share = images / (images + kept)
        return Earlier(statistics, torch.tensor(share, device=statistics[0][0].device) if tensors else share)

    def add(self, phase: int, statistics: Statistics, images: int) -> None:
        """Count in a finished batch: its statistics in this phase, layer by layer."""
        if self._most == 0:
            return
        if phase in self._kept:
            before, kept = self._kept[phase]
            share = images / (images + kept)
            statistics = [mixed(one, other, share) for one, other in zip(before, statistics, strict=True)]
            images += kept
        self._kept[phase] = (statistics, min(images, self._most))
