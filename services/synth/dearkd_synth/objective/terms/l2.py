"""The L2 norm: keeps pixel values moderate."""

import torch
from torch import Tensor

from dearkd_synth.objective.term import Term, TermInputs


class L2(Term):
    """The mean of the images' L2 norms (`l2`; DeepInversion's code)."""

    name = "l2"

    def loss(self, inputs: TermInputs) -> Tensor:
        return l2(inputs.x)


def l2(x: Tensor) -> Tensor:
    """The mean of the images' L2 norms.

    Args:
        x: (B, C, H, W), normalised space.
    """
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.mean()
