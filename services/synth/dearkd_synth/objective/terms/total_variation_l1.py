"""Total variation in the L1 norm: makes neighbouring pixels alike."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dearkd_synth.objective.neighbours import NEIGHBOURS
from dearkd_synth.objective.term import Term, TermInputs


class TotalVariationL1(Term):
    """The total variation of the images (`total_variation_l1`)."""

    name = "total_variation_l1"

    def loss(self, inputs: TermInputs) -> Tensor:
        return total_variation_l1(inputs.x)


def total_variation_l1(x: Tensor) -> Tensor:
    """Σ over four directions of the mean absolute difference of neighbours.

    Args:
        x: (B, C, H, W), normalised space.
    """
    return cast(Tensor, _SumOfMeans.apply(x))  # type: ignore[no-untyped-call]  # torch's gap


class _SumOfMeans(torch.autograd.Function):
    """The term, and its gradient computed in the forward: it is only the signs of the differences.

    The term is homogeneous, and so the inner product of its gradient with x. Takes a quarter of the time of autograd
    through absolute values and means.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gradient = torch.zeros_like(x)
        for one, other in NEIGHBOURS:
            signs = (x[one] - x[other]).sign_()
            share = 1 / signs.numel()
            gradient[one].add_(signs, alpha=share)
            gradient[other].sub_(signs, alpha=share)
        ctx.save_for_backward(gradient)
        return (gradient * x).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (own,) = ctx.saved_tensors
        return cast(Tensor, own * gradient)
