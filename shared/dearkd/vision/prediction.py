"""Answers of a classifier to images: the most probable classes, by number and by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOP = 5


@dataclass(frozen=True, slots=True)
class Classifier:
    """A network with its input and the names of its classes.

    `mean` and `std` are of pixels in [0, 1], a number a channel.
    """

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    class_names: Sequence[str]
    device: torch.device

    def inputs(self, pixels: Tensor) -> Tensor:
        """Normalised input of pixels (N, C, H, W), uint8."""
        shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((pixels.float() / 255 - shift) / scale).to(self.device)

    @torch.inference_mode()
    def answers(self, pixels: Tensor) -> list[list[dict[str, Any]]]:
        """The `TOP` most probable classes of each image, the first first.

        Each is `class`, its number, `name`, and `probability` in [0, 1].
        """
        logits = self.network(self.inputs(pixels)).float()
        ranked = logits.softmax(1).cpu().topk(min(TOP, len(self.class_names)))
        return [
            [
                {"class": index, "name": self.class_names[index], "probability": probability}
                for probability, index in zip(probabilities, indices, strict=True)
            ]
            for probabilities, indices in zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True)
        ]
