"""What natural images have in common: neighbours that resemble each other, and moderate pixel values."""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ALL, _BUT_LAST, _BUT_FIRST = slice(None), slice(None, -1), slice(1, None)
_NEIGHBOURS = (
    ((..., _ALL, _BUT_LAST), (..., _ALL, _BUT_FIRST)),
    ((..., _BUT_LAST, _ALL), (..., _BUT_FIRST, _ALL)),
    ((..., _BUT_FIRST, _BUT_LAST), (..., _BUT_LAST, _BUT_FIRST)),
    ((..., _BUT_LAST, _BUT_LAST), (..., _BUT_FIRST, _BUT_FIRST)),
)
"""Where the two neighbours of a pair lie, for the four directions: horizontal, vertical and the two diagonals."""


class _NeighbourDifferences(torch.autograd.Function):
    """Differences of neighbours along the four directions.

    Autograd's own backward of eight overlapping slices makes eight full-size tensors and adds them up; this one adds
    into a single tensor, in half the time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x[one] - x[other] for one, other in _NEIGHBOURS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        height, width = gradients[0].shape[2], gradients[1].shape[3]
        total = gradients[0].new_zeros(*gradients[0].shape[:2], height, width)
        for gradient, (one, other) in zip(gradients, _NEIGHBOURS, strict=True):
            total[one].add_(gradient)
            total[other].sub_(gradient)
        return total


def _neighbour_differences(x: Tensor) -> tuple[Tensor, ...]:
    return cast(tuple[Tensor, ...], _NeighbourDifferences.apply(x))  # type: ignore[no-untyped-call]  # torch's gap


class _TotalVariationL1(torch.autograd.Function):
    """The L1 term with its gradient, which is no more than signs: made forward, while the differences are at hand.

    A third of the time that autograd takes over absolute values and means of the differences.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gradient, means = torch.zeros_like(x), []
        for one, other in _NEIGHBOURS:
            difference = x[one] - x[other]
            means.append(difference.abs().mean())
            signs, share = difference.sign_(), 1 / difference.numel()
            gradient[one].add_(signs, alpha=share)
            gradient[other].sub_(signs, alpha=share)
        ctx.save_for_backward(gradient)
        return torch.stack(means).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (own,) = ctx.saved_tensors
        return cast(Tensor, own * gradient)


def total_variation_l1(x: Tensor) -> Tensor:
    """Σ over four directions of the mean absolute difference of neighbours.

    Args:
        x: (B, C, H, W), normalised space.
    """
    return cast(Tensor, _TotalVariationL1.apply(x))  # type: ignore[no-untyped-call]  # torch's gap


def total_variation_l2(x: Tensor) -> Tensor:
    """Σ over four directions of the L2 norm of all differences of the batch, divided by √B.

    DeepInversion's code does not divide, and so punishes large batches more; the division is our choice [R], with
    which a batch of copies of one image has that image's value.

    Args:
        x: (B, C, H, W), normalised space.
    """
    norms = torch.stack([torch.linalg.vector_norm(difference) for difference in _neighbour_differences(x)])
    return norms.sum() / math.sqrt(x.shape[0])


def l2(x: Tensor) -> Tensor:
    """The mean of the images' L2 norms (DeepInversion's code).

    Args:
        x: (B, C, H, W), normalised space.
    """
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.mean()
