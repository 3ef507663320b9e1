"""Moderate pixel values."""

import torch
from torch import Tensor

from dearkd_synth.objective.term import Seen, Term


class L2(Term):
    """The mean of the images' L2 norms (DeepInversion's code)."""

    name = "l2"

    def loss(self, seen: Seen) -> Tensor:
        return l2(seen.x)


def l2(x: Tensor) -> Tensor:
    """The mean of the images' L2 norms.

    Args:
        x: (B, C, H, W), normalised space.
    """
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.mean()
