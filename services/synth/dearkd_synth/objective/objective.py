"""The objective of the inversion: the weighted sum of its terms, and one forward of the networks for all of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dearkd.specs import SynthesisSpec
from dearkd.vision.teachers import TraceableFeatures, features_and_logits
from dearkd_synth.engine.compilation import compiled
from dearkd_synth.objective.statistics import Statistics, StatisticsMatching
from dearkd_synth.objective.term import FinishedBatch, Term, TermInputs, load_term


class Objective:
    """L = Σ weight · term (docs/method.md, section 1). A term of weight 0 is not computed.

    Args:
        spec: gives weights, margins and precision.
        teacher: frozen, in eval mode; its BatchNorm layers are replaced for good: give a copy.
        adaptive_student: frozen, in eval mode; without one no term takes part that needs it.
    """

    def __init__(self, spec: SynthesisSpec, teacher: nn.Module, adaptive_student: nn.Module | None = None) -> None:
        self._spec = spec
        self._teacher = teacher
        self._features_and_logits = TraceableFeatures(teacher)
        self._matching = StatisticsMatching(
            teacher,
            first_weight=spec.first_batch_norm_weight,
            layer_weights=spec.batch_norm_layer_weights,
            distance=spec.statistics,
        )
        self._student = adaptive_student
        self._weights: dict[str, float] = {name: weight for name, weight in spec.weights.model_dump().items() if weight}
        self._all_terms = [load_term(name)(spec) for name in self._weights]
        self.logits = torch.empty(0, 0)
        """(B, num_classes), the teacher's, of the last images that `losses` was given, without their graph."""
        self.statistics: Statistics = []
        """Statistics of the last images that `losses` was given, without their graph; empty if no term needs them."""
        # Not the bound method: what it is bound to would live until the next garbage collection.
        self._compute = compiled(Objective._losses) if spec.compile else Objective._losses
        self.compete(adaptive_student is not None)

    def compete(self, takes_part: bool) -> None:
        """Turn the terms that need the student on or off."""
        self._terms: list[Term] = [term for term in self._all_terms if takes_part or not term.needs_student]

    def begin_shard(self) -> None:
        """Forget all finished batches."""
        for term in self._all_terms:
            term.begin_shard()

    def begin_phase(self, phase: int, labels: Tensor) -> None:
        """Let each term look up the finished batches that count for a batch with these labels (B,)."""
        for term in self._terms:
            term.begin_phase(phase, labels)

    def keep(self, batch: FinishedBatch) -> None:
        """Give a finished batch to the terms, for the later batches of its shard."""
        for term in self._terms:
            term.keep(batch)

    def losses(self, x: Tensor, view: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """The terms by name, not yet weighted, float32 scalars.

        Args:
            x: (B, C, r, r), the tensor that is optimised.
            view: (B, C, s, s), the same images as the networks see them.
            labels: (B,); None while the images have none: terms that need labels are then left out.
        """
        # Outside the compiled part, which would be compiled anew if it found other flags or lists than a step ago.
        self._matching.start(matching=any(term.needs_statistics for term in self._terms))
        losses, self.logits, self.statistics = self._compute(self, x, view, labels)
        return losses

    def _losses(self, x: Tensor, view: Tensor, labels: Tensor | None) -> tuple[dict[str, Tensor], Tensor, Statistics]:
        """The terms; the logits; the statistics. The last two without their graph."""
        terms = [term for term in self._terms if labels is not None or not term.needs_labels]
        needs_student = any(term.needs_student for term in terms)
        with torch.autocast(view.device.type, torch.bfloat16, enabled=self._spec.precision == "bfloat16"):
            features, logits = self._features_and_logits(view)
            student_logits = self._student(view) if self._student and needs_student else logits
        inputs = TermInputs(
            x=x,
            view=view,
            features=features.float(),
            logits=logits.float(),
            student_logits=student_logits.float(),
            labels=torch.empty(0) if labels is None else labels,
            matching=self._matching,
        )
        losses = {term.name: term.loss(inputs) for term in terms}
        statistics = self._matching.collected()
        self._matching.forget()
        return losses, inputs.logits.detach(), statistics

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, a scalar."""
        return torch.stack([self._weights[name] * loss for name, loss in losses.items()]).sum()

    def judge(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, D), logits (B, num_classes) and the distance of the statistics (a scalar) of finished images.

        All in float32.

        Args:
            inputs: (B, C, s, s), normalised.
        """
        self._matching.start()
        features, logits = features_and_logits(self._teacher, inputs)
        return features, logits, self._matching.loss()

    @property
    def first_layer_variance(self) -> float:
        """The figure of `SynthesisedBatch`, of the images that were judged last."""
        return self._matching.first_layer_variance()
