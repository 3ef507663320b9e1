"""The base class of the objective's terms, each a class in the module of `terms` that is named as its weight is."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

from torch import Tensor

from dearkd.specs import SynthesisSpec
from dearkd.specs.terms import term_modules
from dearkd_synth.objective import terms
from dearkd_synth.objective.statistics import Statistics, StatisticsMatching


@dataclass(frozen=True, kw_only=True)
class TermInputs:
    """The inputs of a term's loss in one step: the images, and the networks' outputs for them in float32."""

    x: Tensor
    """(B, C, r, r), the tensor that is optimised, at its own resolution, not rolled, so that neither the upsampling nor
    the seam of the roll counts as variation [R]."""
    view: Tensor
    """(B, C, s, s), the same images as the networks see them: upsampled, rolled, flipped."""
    features: Tensor
    """(B, D), the teacher's pooled penultimate features."""
    logits: Tensor
    """(B, num_classes), the teacher's."""
    student_logits: Tensor
    """(B, num_classes), the adaptive student's; the teacher's again if no term needs the student."""
    labels: Tensor
    """(B,), class indices; empty while the images have no labels: terms that need labels are then not called."""
    matching: StatisticsMatching
    """The teacher's BatchNorm layers; they hold the statistics of `view` if a term has `needs_statistics`."""


@dataclass(frozen=True, kw_only=True)
class FinishedBatch:
    """A finished batch, as terms get it in `keep`."""

    labels: Tensor
    """(B,), class indices."""
    features: Tensor
    """(B, D), the teacher's, of the stored pixels."""
    statistics: Sequence[Statistics]
    """Statistics at the last step of each phase, one entry a phase; an entry is empty if no term needs them."""


class Term:
    """A term of the objective.

    A shard's batches are made one after another. A term may depend on the finished ones: it stores what it needs in
    `keep` and drops it in `begin_shard`, so that a shard is a function of the spec and its index alone.

    Args:
        spec: gives margins and the like.
    """

    name: ClassVar[str]
    """The name of its module and of its weight."""
    needs_labels: ClassVar[bool] = False
    """True if `loss` reads `labels`; such terms are left out of the first `unlabelled_iterations`."""
    needs_statistics: ClassVar[bool] = False
    """True if `loss` reads the statistics in `matching`."""
    needs_student: ClassVar[bool] = False
    """True if `loss` reads `student_logits`; such terms are left out where no student takes part."""

    def __init__(self, spec: SynthesisSpec) -> None:
        self.spec = spec
        self.begin_shard()

    def loss(self, inputs: TermInputs) -> Tensor:
        """The term, not yet weighted, a float32 scalar.

        With `spec.compile` it is compiled, and compiled anew whenever a Python number or a shape that it reads
        changes: put what varies from step to step into a tensor of fixed shape.
        """
        raise NotImplementedError

    def begin_shard(self) -> None:
        """Forget all finished batches; called once by the constructor too."""

    def begin_phase(self, phase: int, labels: Tensor) -> None:
        """Look up the finished batches that count for a batch with these labels (B,), before a phase's first step."""

    def keep(self, batch: FinishedBatch) -> None:
        """Store what later batches of the shard need of a finished one."""


def load_term(name: str) -> type[Term]:
    """The class of a term, by its name.

    Raises:
        ModuleNotFoundError: if no installed package has it.
    """
    import_module(term_modules().get(name, f"{terms.__name__}.{name}"))
    return next(term for term in Term.__subclasses__() if term.name == name)
