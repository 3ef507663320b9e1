"""What a term of the objective is: a class in a module of `terms` that both bear the name of its weight."""

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
class Seen:
    """What there is to look at in a step: the images and what the networks say of them. Outputs are float32."""

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
    """(B, num_classes), the adaptive student's; the teacher's where no term needs it."""
    labels: Tensor
    """(B,); empty where the images have none yet: then no term is asked that needs them."""
    matching: StatisticsMatching
    """The teacher's BatchNorm layers, with the statistics of `view` where a term needs them."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a term may keep of a finished batch."""

    labels: Tensor
    """(B,)"""
    features: Tensor
    """(B, D), the teacher's, of the stored pixels."""
    statistics: Sequence[Statistics]
    """At the last step of each phase; empty where no term needs them."""


class Term:
    """A term of the objective.

    A shard's batches are made one after another; a term that looks at finished ones keeps what it needs of them, in
    `keep`, and forgets it at the next shard, so that a shard is a function of the spec and its index alone.

    Args:
        spec: gives margins and the like.
    """

    name: ClassVar[str]
    """As its module and its weight are called."""
    needs_labels: ClassVar[bool] = False
    """Whether it says what class an image belongs to, or how far inside it: it waits until images have labels."""
    needs_statistics: ClassVar[bool] = False
    needs_student: ClassVar[bool] = False

    def __init__(self, spec: SynthesisSpec) -> None:
        self.spec = spec

    def loss(self, seen: Seen) -> Tensor:
        """The term, not yet weighted, a float32 scalar.

        With `spec.compile` it is compiled, and compiled anew wherever a number or a shape that it reads changes from
        step to step; what is in a tensor may change.
        """
        raise NotImplementedError

    def begin_shard(self) -> None:
        """Forget all finished batches."""

    def begin_phase(self, phase: int, labels: Tensor) -> None:
        """Lay out what is known beside a batch of these labels (B,), before the first step of a phase."""

    def keep(self, batch: Finished) -> None:
        """Take note of a batch that is finished."""


def load_term(name: str) -> type[Term]:
    """The class of a term, by its name.

    Raises:
        ModuleNotFoundError: if nothing that is installed has it.
    """
    import_module(term_modules().get(name, f"{terms.__name__}.{name}"))
    return next(term for term in Term.__subclasses__() if term.name == name)
