"""Common parts of the exported graphs (ONNX, torch.export): their input, and the comparison with the network."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dearkd.errors import DearKDError

TOLERANCE = 1e-4
"""The largest difference between a graph's logits and the network's that is let through."""


@dataclass(frozen=True, slots=True)
class GraphInput:
    """The images that a graph takes: square, any number at once."""

    in_chans: int
    image_size: int
    """In pixels."""
    normalise: tuple[list[float], list[float]] | None = None
    """Mean and std per channel, of pixels in [0, 1], by which the graph itself normalises; None where its input is
    normalised already."""

    def example(self, batch: int) -> Tensor:
        """Random images: uint8 (batch, image_size, image_size, in_chans) where the graph normalises them, as decoders
        give them, else float32 (batch, in_chans, image_size, image_size)."""
        side, generator = self.image_size, torch.Generator().manual_seed(batch)
        if self.normalise is None:
            return torch.randn(batch, self.in_chans, side, side, generator=generator)
        return torch.randint(0, 256, (batch, side, side, self.in_chans), generator=generator, dtype=torch.uint8)


class Normalised(nn.Module):
    """A network behind its preprocessing: from uint8 (B, image_size, image_size, in_chans) to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float() / 255
        logits: Tensor = self.model((pixels - self.mean) / self.std)
        return logits


def whole_model(model: nn.Module, given: GraphInput) -> nn.Module:
    """A copy of a network in eval mode, without gradients, behind its preprocessing if the graph is to have that."""
    plain = copy.deepcopy(model).eval()
    whole = plain if given.normalise is None else Normalised(plain, *given.normalise).eval()
    return whole.requires_grad_(False)


def require_same(answer: Callable[[Tensor], Tensor], model: nn.Module, given: GraphInput, *, whose: str) -> float:
    """The largest difference between a graph's logits and those of the network, over batches of 1 and 3 random images.

    Args:
        answer: the graph's logits of images.
        model: from `whole_model`, before anything was changed for the export.
        given: the graph's input.
        whose: which program ran the graph.

    Raises:
        DearKDError: with code `not_equal` where the difference is over `TOLERANCE`.
    """
    difference = 0.0
    for batch in (1, 3):
        images = given.example(batch)
        with torch.no_grad():
            difference = max(difference, (answer(images) - model(images)).abs().max().item())
    if not difference <= TOLERANCE:  # not a number is no parity either
        raise DearKDError(
            f"{whose}'s logits differ from torch's by {difference:.2g}, over {TOLERANCE:g}: nothing was exported; "
            "please report it, with the versions of torch and of what ran it",
            code="not_equal",
        )
    return difference
