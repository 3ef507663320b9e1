"""The generator: a small network that makes a batch's images out of latent vectors (`generator`)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.specs import GeneratorSpec

COARSEST, NARROWEST = 8, 16
"""Side of the first maps, about, and the fewest channels of the last ones [R]."""
SPREAD = 0.6
"""Deviation of the weights by which images mix maps to colours, at first [R]: enough for all of the range of pixels."""


class Generator(nn.Module):
    """Maps latent vectors (B, latent_dim) to images (B, C, r, r) in the range of pixels.

    A linear layer makes maps of about 8 pixels; they are doubled (nearest) and convolved until they have the side of
    the images, as in DAFL's generator (Chen et al., ICCV 2019), with fewer channels [R]. Each convolution has
    BatchNorm, with the statistics of the batch, and a leaky ReLU behind it. Each image mixes the last maps to colours
    of its own, for weights that all share would give all the same few [R]; a sigmoid spans the range of pixels. It
    begins about the mean pixel.

    Args:
        spec: its size.
        resolution: r, in pixels.
        black: the least value of each channel, normalised.
        white: the greatest.
        seed: of its weights, which are drawn on the CPU.
    """

    _black: Tensor
    _range: Tensor
    _grey: Tensor

    def __init__(
        self, spec: GeneratorSpec, resolution: int, black: Sequence[float], white: Sequence[float], *, seed: int
    ) -> None:
        super().__init__()
        doublings = max(0, round(math.log2(resolution / COARSEST)))
        self.chans, self.resolution = len(black), resolution
        self._side = -(-resolution // 2**doublings)
        self._width = width = spec.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._maps = nn.Linear(spec.latent_dim, width * self._side**2)
            layers: list[nn.Module] = [_norm(width)]
            for number in range(doublings):
                narrower = width if number == 0 else max(min(NARROWEST, width), width // 2)
                layers += [
                    nn.Upsample(scale_factor=2),
                    nn.Conv2d(width, narrower, 3, padding=1),
                    _norm(narrower),
                    nn.LeakyReLU(0.2),
                ]
                width = narrower
            self._body = nn.Sequential(*layers)
            # Half the time of a CPU.
            self._body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
            self._colours = nn.Linear(spec.latent_dim, self.chans * (width + 1))
            with torch.no_grad():
                self._colours.weight.normal_(std=SPREAD)
        self.register_buffer("_black", torch.tensor(black).view(1, -1, 1, 1))
        self.register_buffer("_range", torch.tensor(white).view(1, -1, 1, 1) - self._black)
        grey = (-self._black / self._range).clamp(0.02, 0.98)  # the mean is 0
        self.register_buffer("_grey", grey.logit())

    def forward(self, latents: Tensor) -> Tensor:
        maps = self._maps(latents).view(len(latents), self._width, self._side, self._side)
        features = self._body(maps.contiguous(memory_format=torch.channels_last))
        # Of latents of one length: colours that run away end as black or white, where there is no gradient.
        mixture = self._colours(F.normalize(latents))
        weights, offsets = mixture.view(len(latents), -1, self.chans).tensor_split([-1], dim=1)
        # As rows of pixels (B, r·r, channels): in channels_last none is copied.
        logits = torch.baddbmm(offsets, features.permute(0, 2, 3, 1).flatten(1, 2), weights)
        side = features.shape[-1]
        images: Tensor = (
            self._black
            + self._range * (self._grey + logits.view(-1, side, side, self.chans).permute(0, 3, 1, 2)).sigmoid()
        )
        return images[..., : self.resolution, : self.resolution]


def _norm(channels: int) -> nn.BatchNorm2d:
    """Normalises by the batch alone: no statistics are kept, for nobody uses the generator afterwards."""
    return nn.BatchNorm2d(channels, track_running_stats=False)
