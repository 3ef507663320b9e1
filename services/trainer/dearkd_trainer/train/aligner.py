"""Hidden distillation's bridge: from a student's early patch tokens to a teacher's early feature maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.errors import FieldError, InvalidInput
from dearkd.specs import PairSpec
from dearkd_trainer.model.student import DearKDViT


@dataclass(frozen=True, slots=True)
class Stage:
    """A teacher's intermediate feature map: its index in `forward_intermediates`, channels, side lengths, and how many
    input pixels a step on it is, rounded."""

    index: int
    channels: int
    height: int
    width: int
    stride: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A student block whose patch tokens learn to foretell a teacher stage."""

    block: int
    stage: Stage


class Aligner(nn.Module):
    """Patch tokens as a map → the teacher's height and width (bilinear) → 3×3 depth-wise convolution → LayerNorm over
    channels → GELU → 1×1 convolution to the teacher's channels.

    That tokens are bridged with a depth-wise convolution is the paper's; the form is our choice [R].

    Args:
        embed_dim: channels of the tokens.
        stage: what they are to match.
    """

    def __init__(self, embed_dim: int, stage: Stage) -> None:
        super().__init__()
        self.size = (stage.height, stage.width)
        self.depthwise = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim)
        self.norm = LayerNorm2d(embed_dim)
        self.project = nn.Conv2d(embed_dim, stage.channels, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, embed_dim, rows, columns) → (B, channels, height, width)."""
        x = F.interpolate(tokens, self.size, mode="bilinear", align_corners=False)
        return cast(Tensor, self.project(F.gelu(self.norm(self.depthwise(x)))))


@torch.no_grad()
def teacher_stages(teacher: nn.Module, in_chans: int, image_size: int) -> list[Stage]:
    """What `forward_intermediates` gives for one image of this size, found out by trying.

    Raises:
        InvalidInput: if the architecture has no `forward_intermediates` or cannot take the size, or its features lead
            to other logits than a plain forward: then hidden distillation would need a second pass.
    """
    if not hasattr(teacher, "forward_intermediates"):
        raise InvalidInput.at(
            "/stage_one/weights/hidden",
            f"{type(teacher).__name__} has no forward_intermediates, so that its features cannot be read; set it to 0",
        )
    like = next(teacher.parameters())
    images = torch.linspace(-1, 1, in_chans * image_size**2, device=like.device, dtype=like.dtype)
    images = images.view(1, in_chans, image_size, image_size)
    try:
        maps: list[Tensor] = teacher.forward_intermediates(images, intermediates_only=True)  # type: ignore[operator]  # timm's
        shapes = [(channels, height, width) for _, channels, height, width in (one.shape for one in maps)]
        logits, _ = teacher_forward(teacher, images, [0])
        expected = teacher(images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what a network raises on a size is its own affair
        raise InvalidInput.at(
            "/stage_one/weights/hidden",
            f"{type(teacher).__name__} gives no feature maps of an image of {image_size}×{image_size} pixels: {error}; "
            "use a teacher of that size, or set it to 0",
        ) from error
    if (logits - expected).abs().max() > 1e-3 * expected.abs().max():
        raise InvalidInput.at(
            "/stage_one/weights/hidden",
            f"{type(teacher).__name__} does not finish its forward from forward_intermediates; set it to 0",
        )
    return [
        Stage(index, channels, height, width, stride=round(image_size / height))
        for index, (channels, height, width) in enumerate(shapes)
    ]


@torch.no_grad()
def teacher_forward(teacher: nn.Module, images: Tensor, stages: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, num_classes) and the feature maps of the stages, from one forward without gradients.

    Args:
        teacher: a timm CNN in eval mode.
        images: (B, in_chans, H, W), as the teacher takes them.
        stages: indices into `forward_intermediates`, ascending; without any, a plain forward is made.
    """
    if not stages:
        return teacher(images), []
    last, maps = teacher.forward_intermediates(images, indices=list(stages))  # type: ignore[operator]  # timm's
    return teacher.forward_head(last), maps  # type: ignore[operator]  # timm's


def choose_pairs(student: DearKDViT, stages: Sequence[Stage]) -> list[Pair]:
    """Early teacher stages onto the MHCA blocks, or onto the first third of the blocks where there are none [R].

    Early are the stages from stride 4 on that resolve the image at least as finely as the tokens do. Each is given a
    block of its own, in order and evenly spread, the last stage to the last block; where there are more stages than
    blocks, the coarser ones stay.

    Args:
        student: decides the blocks and the token grid.
        stages: of the teacher, as it sees the student's images.
    """
    rows, columns = student.patch_embed.grid_size
    fine = [stage for stage in stages if stage.height >= rows and stage.width >= columns]
    early = [stage for stage in fine if stage.stride >= 4] or fine[-1:] or list(stages[:1])
    blocks = student.mhca_blocks or max(1, len(student.blocks) // 3)
    early = early[-blocks:]
    last_blocks = [round((number + 1) * blocks / len(early)) - 1 for number in range(len(early))]
    return [Pair(block, stage) for block, stage in zip(last_blocks, early, strict=True)]


def named_pairs(chosen: Sequence[PairSpec], stages: Sequence[Stage]) -> list[Pair]:
    """The pairs that a spec names.

    Raises:
        InvalidInput: with a pointer to each stage that the teacher does not have.
    """
    errors = [
        FieldError(
            f"/stage_one/pairs/{place}/stage", f"{pair.stage}, but the teacher's stages are 0 to {len(stages) - 1}"
        )
        for place, pair in enumerate(chosen)
        if pair.stage >= len(stages)
    ]
    if errors:
        raise InvalidInput("; ".join(f"{e.pointer}: {e.detail}" for e in errors), errors=errors)
    return [Pair(pair.block, stages[pair.stage]) for pair in chosen]
