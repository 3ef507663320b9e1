"""The random views of the images that networks see at each step: crop, roll and flip, drawn before the first step."""

import math

import torch
from torch import Tensor

from dearkd.specs import Phase, SynthesisSpec
from dearkd_synth.engine.resizing import resize

WIDEST = 4 / 3
"""Aspect ratios of crops lie between this and its inverse, as in torchvision's RandomResizedCrop."""


class Views:
    """The random views of one batch; a step shows the whole batch in one view.

    All are drawn at once, on the CPU, so that they do not depend on the device.

    Args:
        spec: gives jitter, flip, crops and phases.
        generator: random numbers of this batch.
    """

    def __init__(self, spec: SynthesisSpec, generator: torch.Generator) -> None:
        steps = sum(phase.iterations for phase in spec.phases)
        self._spec = spec
        self._steps = steps
        self._largest = max(phase.input_size for phase in spec.phases)
        self._rolls = torch.rand(steps, 2, generator=generator).tolist()
        self._flips = (torch.rand(steps, generator=generator) < spec.flip).tolist()
        self._crops = torch.rand(steps, 4, generator=generator).tolist() if spec.crop_min_scale < 1 else None

    def show(self, x: Tensor, phase: Phase, step: int) -> Tensor:
        """The images x (B, C, r, r) as (B, C, s, s) of the phase's `input_size` s, differentiable.

        Args:
            x: at the phase's resolution.
            phase: the one that `step` falls into.
            step: counted from 0 over all phases.
        """
        size = phase.input_size
        view = resize(x, size)
        if self._crops is not None:
            least = least_scale(self._spec.crop_min_scale, step, self._steps)
            top, left, height, width = crop_box(size, least, self._crops[step])
            view = resize(view[:, :, top : top + height, left : left + width], size)
        jitter = self._spec.jitter * size // self._largest  # as published: ±30 at 224 px is ±15 at 112
        down, right = (math.floor(share * (2 * jitter + 1)) - jitter for share in self._rolls[step])
        view = view.roll((down, right), (2, 3))
        if self._flips[step]:
            view = view.flip(3)
        return view.contiguous(memory_format=torch.channels_last)


def least_scale(end: float, step: int, steps: int) -> float:
    """The smallest share of the area that a crop may have at a step: half a cosine from 1 to `end`.

    That crops get harder as synthesis goes on is published (Curriculum Data Augmentation: Yin and Shen, TMLR 2024, with
    an end of 0.08); that the fall takes all steps is our choice [R].
    """
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps - 1)))


def crop_box(size: int, least: float, draws: list[float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop of a square of `size` pixels.

    The share of the area is uniform in [least, 1], the aspect ratio log-uniform between 3/4 and 4/3 among those with
    which the crop fits; torchvision tries ten times instead, and then takes the middle.

    Args:
        size: in pixels.
        least: in (0, 1].
        draws: four numbers in [0, 1): for area, aspect ratio, top and left.
    """
    scale = least + (1 - least) * draws[0]
    widest = min(math.log(WIDEST), -math.log(scale))
    ratio = math.exp(widest * (2 * draws[1] - 1))
    height, width = (max(1, round(size * math.sqrt(scale * r))) for r in (1 / ratio, ratio))
    top, left = (int(share * (size - side + 1)) for share, side in ((draws[2], height), (draws[3], width)))
    return top, left, height, width
