"""Weights of other ViTs for a student: DeiT's, timm's, or a student's own at another size."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from dearkd.errors import InvalidInput
from dearkd_trainer.model.mhca import MHCA, rescaled

log = logging.getLogger(__name__)

POSITIONS = "pos_embed"
PATCHES = "patch_embed.proj.weight"


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
    given = _unwrapped(weights)
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
    """The same weights, resized to a student's grid, patch size, prefix tokens and channels where they differ."""
    adapted = adapt(weights, student)
    channels = student.get_parameter(PATCHES).shape[1]
    if PATCHES in adapted and adapted[PATCHES].shape[1] != channels:
        adapted[PATCHES] = adapt_input_conv(channels, adapted[PATCHES])
    return adapted


def adapt(weights: Mapping[str, Any], student: Any) -> dict[str, Tensor]:
    """The same weights, resized to a student's grid, patch size and prefix tokens where they differ.

    It is also what timm calls on a checkpoint when it loads one by itself (`pretrained=True`), before it sees to the
    channels and to heads for other classes.
    """
    found = _unwrapped(weights)
    grid: tuple[int, int] = student.patch_embed.grid_size
    old_grid = grid
    if POSITIONS in found:
        source_tokens = 2 if "dist_token" in found else 1
        positions = found[POSITIONS]
        old_grid = _grid_of(positions.shape[1] - source_tokens, grid)
        if old_grid != grid or source_tokens != student.num_prefix_tokens:
            prefix, patches = positions[:, :source_tokens], positions[:, source_tokens:]
            patches = resample_abs_pos_embed(patches, list(grid), list(old_grid), num_prefix_tokens=0)
            own_prefix = student.pos_embed[:, : student.num_prefix_tokens].to(positions)
            prefix = torch.cat([prefix, own_prefix[:, source_tokens:]], dim=1)[:, : student.num_prefix_tokens]
            found[POSITIONS] = torch.cat([prefix, patches], dim=1)
    if PATCHES in found:
        kernel = found[PATCHES]
        size = student.patch_embed.proj.weight.shape[2:]
        if kernel.shape[2:] != size:
            found[PATCHES] = resample_patch_embed(kernel, list(size))
    for name, module in student.named_modules():
        if isinstance(module, MHCA) and f"{name}.position_weight" in found and old_grid != grid:
            found[f"{name}.position_weight"] = rescaled(found[f"{name}.position_weight"], old_grid, grid)
    return found


def _unwrapped(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    return dict(weights.get("state_dict", weights.get("model", weights)))


def _grid_of(patches: int, grid: tuple[int, int]) -> tuple[int, int]:
    """The grid of so many patches: the student's own, or else a square."""
    if patches == grid[0] * grid[1]:
        return grid
    side = math.isqrt(patches)
    if side**2 != patches:
        raise InvalidInput(f"the weights are for {patches} patches, which are no square, and cannot be resized")
    return side, side
