"""The teacher's BatchNorm statistics, of a batch alone or together with the finished ones of its shard.

With a memory small batches match the teacher's statistics as one large batch does.
"""

import torch
from torch import Tensor

from dearkd.specs import SynthesisSpec
from dearkd_synth.objective.statistics import Earlier, Statistics, mixed
from dearkd_synth.objective.term import Finished, Seen, Term


class BatchNorm(Term):
    """Σ_l w_l·(‖μ_l − μ̂_l‖₂ + ‖σ²_l − σ̂²_l‖₂) over the BatchNorm layers (`StatisticsMatching.loss`)."""

    name = "batch_norm"
    needs_statistics = True

    def __init__(self, spec: SynthesisSpec) -> None:
        super().__init__(spec)
        self.begin_shard()

    def begin_shard(self) -> None:
        self._memory = StatisticsMemory(self.spec.statistics_memory)
        self._earlier: Earlier | None = None

    def begin_phase(self, phase: int, labels: Tensor) -> None:
        self._earlier = self._memory.beside(phase, len(labels), tensors=self.spec.compile)

    def loss(self, seen: Seen) -> Tensor:
        return seen.matching.loss(self._earlier)

    def keep(self, batch: Finished) -> None:
        for phase, statistics in enumerate(batch.statistics):
            self._memory.add(phase, statistics, len(batch.labels))


class StatisticsMemory:
    """Running averages of the batch statistics, for each phase.

    The teacher is in eval mode, so that the statistics of several batches together are those of one large batch.

    Args:
        max_images: at most so many earlier images count beside a batch; more are averaged exponentially. 0 keeps none.
    """

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
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
        if self._max_images == 0:
            return
        if phase in self._kept:
            before, kept = self._kept[phase]
            share = images / (images + kept)
            statistics = [mixed(one, other, share) for one, other in zip(before, statistics, strict=True)]
            images += kept
        self._kept[phase] = (statistics, min(images, self._max_images))
