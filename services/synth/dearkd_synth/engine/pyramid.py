"""Adam at several resolutions at once, and the noise that fits to it."""

import torch
from torch import Tensor

from dearkd_synth.engine.resizing import resize


class PyramidAdam:
    """Adam that moves images by the sum of its steps at several resolutions, each half the one before [R].

    So it moves an image as if that were the sum of tensors of its own size, half of that, and so on, upsampled (as a
    Laplacian pyramid: Burt and Adelson, 1983). Adam divides each gradient by its usual size: pixel by pixel what is
    coarse moves no faster than what is fine, and is drowned by it; with a level of its own it comes first. With one
    level it is Adam.

    Args:
        x: the images (B, C, r, r), a leaf; moved in place, and whoever changes them besides does no harm.
        levels: how many resolutions; r is at least 2^levels.
        lr: the learning rate at each level.
        betas: Adam's.
    """

    def __init__(self, x: Tensor, *, levels: int, lr: float, betas: tuple[float, float]) -> None:
        self._x = x
        # What these hold is added to the images after each step: all that is kept of them is Adam's moments.
        self._coarse = [
            x.new_zeros(*x.shape[:2], side, side).requires_grad_() for side in sides(x.shape[-1], levels)[1:]
        ]
        self._adam = torch.optim.Adam([x, *self._coarse], lr=lr, betas=betas, fused=True)

    def set_lr(self, lr: float) -> None:
        self._adam.param_groups[0]["lr"] = lr

    def zero_grad(self) -> None:
        self._adam.zero_grad()

    def step(self) -> None:
        """Move the images by their gradient."""
        size = self._x.shape[-1]
        for level in self._coarse:
            resize(level, size).backward(self._x.grad)
        self._adam.step()
        with torch.no_grad():
            for level in self._coarse:
                self._x += resize(level, size)
                level.zero_()


def sides(size: int, levels: int) -> list[int]:
    """Sides of the levels in pixels, the finest first."""
    return [size >> level for level in range(levels)]


def pyramid_noise(shape: tuple[int, int, int, int], levels: int, generator: torch.Generator) -> Tensor:
    """The sum of normal noise (B, C, r, r) at each level, upsampled, drawn on the CPU, the finest first."""
    images, chans, size, _ = shape
    drawn = [torch.randn(images, chans, side, side, generator=generator) for side in sides(size, levels)]
    return torch.stack([resize(noise, size) for noise in drawn]).sum(0)
