"""Distance to the teacher's BatchNorm statistics, of a batch alone or together with the finished ones of its shard.

Together, small batches match the statistics as one large batch does (`spec.statistics_memory`).
"""

import torch
from torch import Tensor

from dearkd_synth.objective.statistics import Earlier, Statistics, mixed
from dearkd_synth.objective.term import FinishedBatch, Term, TermInputs


class BatchNorm(Term):
    """Σ_l w_l·(‖μ_l − μ̂_l‖₂ + ‖σ²_l − σ̂²_l‖₂) over the BatchNorm layers (`StatisticsMatching.loss`)."""

    name = "batch_norm"
    needs_statistics = True

    def begin_shard(self) -> None:
        self._memory = StatisticsMemory(self.spec.statistics_memory)
        self._earlier: Earlier | None = None

    def begin_phase(self, phase: int, labels: Tensor) -> None:
        self._earlier = self._memory.beside(phase, len(labels), tensors=self.spec.compile)

    def loss(self, inputs: TermInputs) -> Tensor:
        return inputs.matching.loss(self._earlier)

    def keep(self, batch: FinishedBatch) -> None:
        for phase, statistics in enumerate(batch.statistics):
            self._memory.add(phase, statistics, len(batch.labels))


class StatisticsMemory:
    """Running averages of the batch statistics, for each phase.

    The teacher is in eval mode, so that the statistics of several batches together are those of one large batch.

    Args:
        max_images: the most earlier images that count beside a batch; beyond it the average is exponential. 0 keeps
            none.
    """

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._kept: dict[int, tuple[Statistics, int]] = {}

    def beside(self, phase: int, images: int, *, tensors: bool = False) -> Earlier | None:
        """The statistics of a phase to combine with those of a batch; None before the first batch is added.

        Args:
            phase: its number.
            images: in the batch.
            tensors: give the share as a tensor: a compiled step would be compiled anew for another Python number.
        """
        if phase not in self._kept:
            return None
        statistics, kept = self._kept[phase]
        share = images / (images + kept)
        return Earlier(statistics, torch.tensor(share, device=statistics[0][0].device) if tensors else share)

    def add(self, phase: int, statistics: Statistics, images: int) -> None:
        """Add the statistics of a finished batch of so many images in this phase."""
        if self._max_images == 0:
            return
        if phase in self._kept:
            before, kept = self._kept[phase]
            share = images / (images + kept)
            statistics = [mixed(one, other, share) for one, other in zip(before, statistics, strict=True)]
            images += kept
        self._kept[phase] = (statistics, min(images, self._max_images))
