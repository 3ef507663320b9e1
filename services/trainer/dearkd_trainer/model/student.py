"""Student families: everything that training, evaluation and export ask of a student beyond being a timm model.

A family is one file: a class that is a timm model and a `Student`, and its architectures, each registered by
`register_student`. `dearkd_vit` is the first. Nothing else in the trainer knows a family.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import timm
from timm.models import register_model
from torch import Tensor, nn

from dearkd.errors import InvalidInput
from dearkd.specs import StudentSpec
from dearkd.specs.recipes import STUDENTS, StudentSize


class StudentOutput(NamedTuple):
    """The answers of a student that the losses compare."""

    logits: Tensor
    """(B, num_classes), by which the student predicts."""
    dist_logits: Tensor | None
    """(B, num_classes), of a head that learns from the teacher alone; None where the student has none."""
    hidden: list[Tensor]
    """Feature maps (B, channels, rows, columns) after each block that was asked for."""


class HiddenShape(NamedTuple):
    """The shape of the feature map after a block, for one image."""

    channels: int
    rows: int
    columns: int


class Student(nn.Module, ABC):
    """A timm model that can be distilled into: `class ConvStudent(ConvNeXt, Student)`, timm's class first.

    `forward`, `num_classes`, `num_features`, `pretrained_cfg`, `group_matcher` and, where nothing else is said below,
    `forward_intermediates` and `forward_head` are timm's.
    """

    kind: ClassVar[str]
    """The sort of network, as the model card names it: `vision transformer`."""
    distilled: bool = False
    """True if there is a distillation head, whose `dist_logits` `forward_training` returns."""
    num_classes: int
    num_features: int
    global_pool: Any
    pretrained_cfg: Mapping[str, Any]

    @classmethod
    @abstractmethod
    def model_args(cls, spec: StudentSpec, num_classes: int, in_chans: int) -> dict[str, Any]:
        """The arguments of `timm.create_model` for a spec, as JSON: `config.json` keeps them."""

    @classmethod
    def hub_code(cls) -> str | None:
        """The source of a `modeling_dearkd.py` that needs no dearkd, for `dearkd export --to hf`; None without any.

        Importing it registers the family's architectures with timm; of transformers it defines `DearKDConfig` and
        `DearKDForImageClassification`. Without it an export loads where the family's own module is imported.
        """
        return None

    @property
    @abstractmethod
    def hidden_shapes(self) -> list[HiddenShape]:
        """The shape of the feature map after each block, in order."""

    @property
    def early_blocks(self) -> int:
        """The number of first blocks that learn from the teacher's early stages: a third of all by default [R]."""
        return max(1, len(self.hidden_shapes) // 3)

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Names of the heads, which are new where classes differ."""
        names: str | Sequence[str] = self.pretrained_cfg["classifier"]
        return (names,) if isinstance(names, str) else tuple(names)

    def forward_training(self, x: Tensor, blocks: Sequence[int]) -> StudentOutput:
        """All outputs that the losses use, from one forward.

        Args:
            x: (B, in_chans, img_size, img_size), normalised.
            blocks: indices of the blocks whose feature maps are wanted, ascending.
        """
        if not blocks:
            return StudentOutput(self(x), None, [])
        model = cast(Any, self)
        last, hidden = model.forward_intermediates(x, indices=list(blocks))
        return StudentOutput(model.forward_head(last), None, hidden)

    def no_weight_decay(self) -> set[str]:
        """Names of the weights that are not decayed, besides biases and norms."""
        return set()

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this family as this student takes them: resized, where it is of another image size."""
        return dict(weights)

    def begin_from(self, initial: "Student") -> None:
        """Take over a trained student's weights, for fine-tuning; heads stay its own where classes differ.

        Args:
            initial: of the same family and dimensions, at any image size; not changed.

        Raises:
            InvalidInput: at `/init`, naming the weights that one of them lacks, or that are of another shape.
        """
        own, given = self.state_dict(), self.adapted(initial.state_dict())
        if self.num_classes != initial.num_classes:
            heads = tuple(f"{name}." for name in self.classifiers)
            own, given = (
                {name: tensor for name, tensor in state.items() if not name.startswith(heads)} for state in (own, given)
            )
        shapes, wanted = ({name: tensor.shape for name, tensor in state.items()} for state in (given, own))
        differing = [name for name in {**shapes, **wanted} if shapes.get(name) != wanted.get(name)]
        if differing:
            raise InvalidInput.at(
                "/init",
                f"the model to begin from is of other dimensions: {', '.join(differing[:5])}"
                + (f" and {len(differing) - 5} other weights differ" if len(differing) > 5 else " differ"),
            )
        self.load_state_dict(given, strict=False)

    def attention_distances(self, images: Tensor) -> list[list[float]]:
        """Mean attention distance of each head of each layer, in pixels; empty where there is no attention.

        Args:
            images: (N, in_chans, img_size, img_size), normalised, on the student's device.
        """
        return []

    def attention_maps(self, images: Tensor) -> Tensor | None:
        """Shares of the patches in each answer, (N, rows, columns); None where there is no attention.

        Args:
            images: (N, in_chans, img_size, img_size), normalised, on the student's device.
        """
        return None


FAMILIES: dict[str, type[Student]] = {}
"""The class of each registered architecture."""

Entrypoint = TypeVar("Entrypoint", bound=Callable[..., Student])


def register_student(family: type[Student], size: StudentSize | None = None) -> Callable[[Entrypoint], Entrypoint]:
    """A decorator of an architecture's entry point, as timm's `register_model`; its name is the function's.

    Args:
        family: the class that it makes.
        size: its dimensions, over which a posted spec is filled in. None where they stand in `dearkd.specs.recipes`, as
            those of every architecture that the HTTP API offers do: it loads no torch, and so no family.
    """

    def register(entrypoint: Entrypoint) -> Entrypoint:
        FAMILIES[entrypoint.__name__] = family
        if size is not None:
            STUDENTS[entrypoint.__name__] = size
        return cast(Entrypoint, register_model(entrypoint))

    return register


def family_of(architecture: str) -> type[Student]:
    """The class of an architecture.

    Raises:
        InvalidInput: at `/student/architecture`, if no family has registered it.
    """
    if architecture not in FAMILIES:
        raise InvalidInput.at(
            "/student/architecture", f"unknown student {architecture!r}; there are {', '.join(FAMILIES)}"
        )
    return FAMILIES[architecture]


def create_student(spec: StudentSpec, num_classes: int, in_chans: int) -> Student:
    """The student of a training spec, freshly initialised from torch's global generator.

    Raises:
        InvalidInput: at `/student/architecture`, if no family has registered it.
    """
    arguments = family_of(spec.architecture).model_args(spec, num_classes, in_chans)
    return cast(Student, timm.create_model(spec.architecture, pretrained=False, **arguments))
