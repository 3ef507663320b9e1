"""Hidden distillation's bridge: from a student's early blocks to a teacher's early feature maps."""

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
from dearkd_trainer.model.student import Student
from dearkd_trainer.train.teacher import Moments, Stage

DEAD = 1e-4
"""The part of the channels' mean variance that is added to each [our choice]."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A student block whose features learn to foretell a teacher stage."""

    block: int
    stage: Stage


class Aligner(nn.Module):
    """A block's feature map → the teacher's height and width (bilinear) → 3×3 depth-wise convolution → LayerNorm over
    channels → GELU → 1×1 convolution to the teacher's channels.

    That tokens are bridged with a depth-wise convolution is the paper's; the form is our choice [R]. So is that it
    foretells the teacher's features in units of each channel's own mean and deviation, which it `takes` before the
    first step: the features' scale is the network's, and would decide the weight of the loss.

    Args:
        channels: of the block's map: a transformer's embed_dim.
        stage: the teacher's map to match.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, stage: Stage) -> None:
        super().__init__()
        self.size = (stage.height, stage.width)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.project = nn.Conv2d(channels, stage.channels, 1)
        self.register_buffer("mean", torch.zeros(stage.channels, 1, 1))
        self.register_buffer("std", torch.ones(stage.channels, 1, 1))

    def take(self, moments: Moments) -> None:
        """Take the measure of each channel from the mean and variance of the teacher's features.

        A channel of next to no deviation, beside the others, is dead: it is not blown up to theirs.
        """
        mean, variance = moments
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_((variance + DEAD * variance.mean()).clamp(min=1e-12).sqrt().view(-1, 1, 1))

    def normalised(self, features: Tensor) -> Tensor:
        """The teacher's features (B, C, H, W) with mean 0 and deviation 1 in each channel, as measured."""
        return (features - self.mean) / self.std

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, channels, rows, columns) to normalised features (B, stage.channels, height, width)."""
        x = F.interpolate(hidden, self.size, mode="bilinear", align_corners=False)
        return cast(Tensor, self.project(F.gelu(self.norm(self.depthwise(x)))))


def choose_pairs(student: Student, stages: Sequence[Stage]) -> list[Pair]:
    """Pairs of early teacher stages and the student's early blocks [R].

    Early are the stages from stride 4 on that resolve the image at least as finely as those blocks do. Each is given a
    block of its own, in order and evenly spread, the last stage to the last block; where there are more stages than
    blocks, the coarser ones stay.

    Args:
        student: decides the blocks and their resolution.
        stages: of the teacher, as it sees the student's images.
    """
    blocks = student.early_blocks
    _, rows, columns = student.hidden_shapes[blocks - 1]
    fine = [stage for stage in stages if stage.height >= rows and stage.width >= columns]
    early = [stage for stage in fine if stage.stride >= 4] or fine[-1:] or list(stages[:1])
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
