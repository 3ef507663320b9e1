"""The variables that are optimised: the pixels of a batch, or a generator's weights and latent vectors."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dearkd.specs import SynthesisSpec
from dearkd_synth.engine.pyramid import PyramidAdam
from dearkd_synth.engine.resizing import resize
from dearkd_synth.generator import Generator


class Parametrisation(Protocol):
    """The images of one batch, and the optimiser of what they are made of."""

    @property
    def current(self) -> Tensor:
        """(B, C, r, r), normalised, without a graph: the images as they are now; changed in place within a phase."""
        ...

    def begin_phase(self, resolution: int, rate: float) -> None:
        """Go on at a resolution, in pixels, with a new Adam, whose learning rate is multiplied from here."""
        ...

    def images(self) -> Tensor:
        """(B, C, r, r), the images of this step, with their graph."""
        ...

    def set_rate_factor(self, factor: float) -> None:
        """Multiply the learning rates of the phase's beginning."""
        ...

    def step(self, loss: Tensor) -> None:
        """Move by the gradient of a loss of `images()`."""
        ...


class Pixels:
    """Images that are their pixels.

    Args:
        spec: gives Adam's betas, levels and clipping.
        x: (B, C, r, r), the beginning.
        black: the least value of each channel, normalised.
        white: the greatest.
    """

    def __init__(self, spec: SynthesisSpec, x: Tensor, black: Sequence[float], white: Sequence[float]) -> None:
        self._spec, self._x, self._bounds = spec, x, [*zip(black, white, strict=True)]

    @property
    def current(self) -> Tensor:
        return self._x

    def begin_phase(self, resolution: int, rate: float) -> None:
        self._x = resize(self._x.detach(), resolution).requires_grad_()
        # A new Adam: its moments belong to the pixels of the last resolution, which had another scale of gradient.
        betas = (self._spec.betas[0], self._spec.betas[1])
        self._rate = rate
        self._optimizer = PyramidAdam(self._x, levels=self._spec.pyramid_levels, lr=rate, betas=betas)

    def images(self) -> Tensor:
        return self._x

    def set_rate_factor(self, factor: float) -> None:
        self._optimizer.set_lr(self._rate * factor)

    def step(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        if self._spec.clip:
            with torch.no_grad():
                # With a tensor of bounds it takes ten times as long.
                for channel, (black, white) in enumerate(self._bounds):
                    self._x[:, channel].clamp_(black, white)


class Generated:
    """Images that come out of a generator, which the batch goes on training.

    Args:
        spec: gives the learning rates and Adam's betas.
        generator: as the batch before left it; changed in place.
        latents: (B, latent_dim), normal, the beginning.
    """

    def __init__(self, spec: SynthesisSpec, generator: Generator, latents: Tensor) -> None:
        self._spec, self.generator = spec, generator
        self._latents = latents.requires_grad_()
        side = generator.resolution
        self._current = latents.new_zeros(len(latents), generator.chans, side, side)

    @property
    def current(self) -> Tensor:
        return self._current

    def begin_phase(self, resolution: int, rate: float) -> None:
        assert self._spec.generator is not None
        if resolution != self.generator.resolution:
            raise ValueError(f"{resolution} px: this generator makes images of {self.generator.resolution} px")
        weights = self._spec.generator.learning_rate * rate / self._spec.learning_rate  # restarts lower both
        groups = [
            {"params": [self._latents], "lr": rate},
            {"params": [*self.generator.parameters()], "lr": weights},
        ]
        self._rates = [rate, weights]
        self._optimizer = torch.optim.Adam(groups, betas=(self._spec.betas[0], self._spec.betas[1]), fused=True)

    def images(self) -> Tensor:
        images: Tensor = self.generator(self._latents)
        with torch.no_grad():
            self._current.copy_(images)
        return images

    def set_rate_factor(self, factor: float) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def step(self, loss: Tensor) -> None:
        """Move; `current` stays what the loss was of, which is what the teacher was asked about."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
