"""Total variation in the L2 norm: makes neighbouring pixels alike."""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dearkd_synth.objective.neighbours import NEIGHBOURS
from dearkd_synth.objective.term import Term, TermInputs


class TotalVariationL2(Term):
    """The total variation of the images (`total_variation_l2`)."""

    name = "total_variation_l2"

    def loss(self, inputs: TermInputs) -> Tensor:
        return total_variation_l2(inputs.x)


def total_variation_l2(x: Tensor) -> Tensor:
    """Σ over four directions of the L2 norm of all differences of the batch, divided by √B.

    DeepInversion's code does not divide, and so punishes large batches more; the division is our choice [R], with
    which a batch of copies of one image has that image's value.

    Args:
        x: (B, C, H, W), normalised space.
    """
    differences = cast(tuple[Tensor, ...], _Differences.apply(x))  # type: ignore[no-untyped-call]  # torch's gap
    norms = torch.stack([torch.linalg.vector_norm(difference) for difference in differences])
    return norms.sum() / math.sqrt(x.shape[0])


class _Differences(torch.autograd.Function):
    """Differences of neighbours along the four directions.

    Autograd's own backward of eight overlapping slices makes eight full-size tensors and adds them up; this one adds
    into a single tensor, in half the time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x[one] - x[other] for one, other in NEIGHBOURS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        height, width = gradients[0].shape[2], gradients[1].shape[3]
        total = gradients[0].new_zeros(*gradients[0].shape[:2], height, width)
        for gradient, (one, other) in zip(gradients, NEIGHBOURS, strict=True):
            total[one].add_(gradient)
            total[other].sub_(gradient)
        return total
