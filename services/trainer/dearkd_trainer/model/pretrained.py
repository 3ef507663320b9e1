"""Weights of other ViTs for a student: DeiT's, timm's, or a student's own at another size."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from dearkd.errors import InvalidInput
from dearkd_trainer.model.vision_transformer import PATCHES, adapt, unwrapped

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """The fate of each tensor of a file of weights; names as in the student's `state_dict()`."""

    loaded: list[str]
    """Taken over."""
    adapted: list[str]
    """Taken over after being resized: to another grid, patch size or number of channels."""
    initial: list[str]
    """The student's own that stayed as they were: MHCA's positional weights, if a plain ViT was loaded."""
    unused: list[str]
    """In the file alone, or of another shape, which is then given."""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for what, names in (("resized", self.adapted), ("left as initialised", self.initial), ("unused", self.unused)):
            if names:
                parts.append(f"{what}: {', '.join(names)}")
        return "; ".join(parts)


@torch.no_grad()
def load_vit_weights(student: nn.Module, weights: Mapping[str, Any]) -> LoadedWeights:
    """Load into a student, in place, whatever of a ViT's weights fits it by name and, if need be resized, by shape.

    Positional embeddings and MHCA's positional weights go to the student's grid, patch embeddings to its patch size and
    channels. A distillation token that only one side has is left out; so is a head for other classes.

    Args:
        student: a `DearKDViT`.
        weights: a `state_dict()` of timm's ViT or DeiT, of a student, or a dict with one under `model` or `state_dict`.

    Raises:
        InvalidInput: if no tensor of it fits: it is no ViT, or one of another width.
    """
    given = unwrapped(weights)
    own = student.state_dict()
    adapted = fit_input(given, student)
    fitting = {name: value for name, value in adapted.items() if name in own and value.shape == own[name].shape}
    if not any(name.startswith("blocks.") for name in fitting):
        raise InvalidInput(
            "none of the weights' blocks fits the student: they must be a ViT's of the same embed_dim and num_heads, "
            f"{getattr(student, 'embed_dim', '?')} wide here, named as in timm"
        )
    student.load_state_dict(fitting, strict=False)
    result = LoadedWeights(
        loaded=[name for name in fitting if fitting[name] is given[name]],
        adapted=[name for name in fitting if fitting[name] is not given[name]],
        initial=[name for name in own if name not in fitting],
        unused=[
            f"{name} {list(value.shape)}, not {list(own[name].shape)}" if name in own else name
            for name, value in adapted.items()
            if name not in fitting
        ],
    )
    log.info("%s", result)
    return result


def fit_input(weights: Mapping[str, Any], student: nn.Module) -> dict[str, Tensor]:
    """The same weights, resized to a student's grid, patch size, prefix tokens and channels where they differ.

    Raises:
        InvalidInput: if the weights' patches are neither as many as the student's nor a square.
    """
    try:
        adapted = adapt(weights, student)
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    channels = student.get_parameter(PATCHES).shape[1]
    if PATCHES in adapted and adapted[PATCHES].shape[1] != channels:
        adapted[PATCHES] = adapt_input_conv(channels, adapted[PATCHES])
    return adapted
