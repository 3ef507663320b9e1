"""The objective of the inversion: which terms there are, what each looks at, and their weighted sum."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.specs import SynthesisSpec
from dearkd.vision.teachers import TraceableFeatures, features_and_logits
from dearkd_synth.engine.compilation import compiled
from dearkd_synth.objective import priors
from dearkd_synth.objective.adaptive import adaptive_loss
from dearkd_synth.objective.batch_norm import Earlier, Statistics, StatisticsMatching
from dearkd_synth.objective.boundary import boundary_loss

OF_CLASSES = frozenset({"cross_entropy", "adaptive", "boundary"})
"""The terms that say what class an image belongs to, or how far inside it."""


class Objective:
    """L = Σ weight · term (docs/method.md, section 1). A term of weight 0 is not computed.

    Args:
        spec: gives weights, margins and precision.
        teacher: frozen, in eval mode; its BatchNorm layers are replaced for good: give a copy.
        adaptive_student: frozen, in eval mode; without one there is no adaptive term.
    """

    def __init__(self, spec: SynthesisSpec, teacher: nn.Module, adaptive_student: nn.Module | None = None) -> None:
        self._spec = spec
        self._teacher = teacher
        self._look = TraceableFeatures(teacher)
        self._statistics = StatisticsMatching(
            teacher, first_weight=spec.first_batch_norm_weight, layer_weights=spec.batch_norm_layer_weights
        )
        self._student = adaptive_student
        self._unlabelled = torch.empty(0, 0)
        self._seen: Statistics = []
        # Not the bound method: what it is bound to would live until the next garbage collection.
        self._compute = compiled(Objective._terms) if spec.compile else Objective._terms
        self.compete(adaptive_student is not None)

    def compete(self, takes_part: bool) -> None:
        """Whether the adaptive term takes part from here on."""
        self._weights: dict[str, float] = {
            name: weight
            for name, weight in self._spec.weights.model_dump().items()
            if weight > 0 and (takes_part or name != "adaptive")
        }

    def terms(
        self,
        x: Tensor,
        view: Tensor,
        labels: Tensor | None,
        earlier: tuple[Tensor, Tensor] | None = None,
        earlier_statistics: Earlier | None = None,
    ) -> dict[str, Tensor]:
        """The terms by name, not yet weighted, float32 scalars.

        Args:
            x: (B, C, r, r), the tensor that is optimised, for the priors: at its own resolution, not rolled, so that
                neither the upsampling nor the seam of the roll counts as variation [R].
            view: (B, C, s, s), the same images as the networks see them: upsampled, rolled, flipped.
            labels: (B,); None where the images have none yet, and then no term that looks at labels or classes.
            earlier: features and labels of images already made (`FeatureBank.of`).
            earlier_statistics: of images already made (`StatisticsMemory.beside`).
        """
        # Before what is compiled, which finds everything as in the step before, or it would be compiled anew.
        self._statistics.start(matching="batch_norm" in self._weights)
        terms, unlabelled, self._seen = self._compute(self, x, view, labels, earlier, earlier_statistics)
        if unlabelled is not None:
            self._unlabelled = unlabelled
        return terms

    def _terms(
        self,
        x: Tensor,
        view: Tensor,
        labels: Tensor | None,
        earlier: tuple[Tensor, Tensor] | None,
        earlier_statistics: Earlier | None,
    ) -> tuple[dict[str, Tensor], Tensor | None, Statistics]:
        """The terms, the logits of images without labels, and the statistics; the latter two without their graph."""
        spec, weights = self._spec, self._weights
        if labels is None:
            weights = {name: weight for name, weight in weights.items() if name not in OF_CLASSES}
        with torch.autocast(view.device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
            features, logits = self._look(view)
            student_logits = self._student(view) if self._student and "adaptive" in weights else logits
        features, logits, student_logits = features.float(), logits.float(), student_logits.float()
        given = torch.empty(0) if labels is None else labels
        compute: dict[str, Callable[[], Tensor]] = {
            "cross_entropy": lambda: F.cross_entropy(logits, given),
            "batch_norm": lambda: self._statistics.loss(earlier_statistics),
            "total_variation_l1": lambda: priors.total_variation_l1(x),
            "total_variation_l2": lambda: priors.total_variation_l2(x),
            "l2": lambda: priors.l2(x),
            "adaptive": lambda: adaptive_loss(logits, student_logits),
            "boundary": lambda: boundary_loss(
                features,
                logits,
                given,
                earlier,
                boundary_margin=spec.boundary_margin,
                similarity_margin=spec.similarity_margin,
            ),
        }
        terms = {name: compute[name]() for name in weights}
        seen = self._statistics.seen()
        self._statistics.forget()
        return terms, logits.detach() if labels is None else None, seen

    def unlabelled_logits(self) -> Tensor:
        """(B, num_classes), what the teacher said of the last images that `terms` saw without labels."""
        return self._unlabelled

    def statistics(self) -> Statistics:
        """Of the last images that `terms` looked at, without their graph; empty where they weigh nothing."""
        return self._seen

    def judge(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, D), logits (B, num_classes) and the statistics term of finished images, in float32.

        Args:
            inputs: (B, C, s, s), normalised.
        """
        self._statistics.start()
        features, logits = features_and_logits(self._teacher, inputs)
        return features, logits, self._statistics.loss()

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, a scalar."""
        return torch.stack([self._weights[name] * term for name, term in terms.items()]).sum()
