"""The beginning of each batch of a shard: noise, or what the batch before it left."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from dearkd.specs import SynthesisSpec
from dearkd_synth.engine.pyramid import pyramid_noise
from dearkd_synth.generator import Generator
from dearkd_synth.initialisation import EarlierBatch, initial
from dearkd_synth.parametrisation import Generated, Parametrisation, Pixels


class Beginnings:
    """Begins one batch of a shard after the other.

    Args:
        spec: says what images are made of, and what a batch takes from the one before.
        black: the least value of each channel, normalised.
        white: the greatest.
        device: where images are optimised.
    """

    def __init__(
        self, spec: SynthesisSpec, black: Sequence[float], white: Sequence[float], device: torch.device
    ) -> None:
        self._spec, self._black, self._white, self._device = spec, black, white, device
        self.begin_shard()

    def begin_shard(self) -> None:
        """Forget the batches made before."""
        self._earlier: EarlierBatch | None = None
        self._generator: Generator | None = None

    def begin(self, labels: Tensor, generator: torch.Generator) -> tuple[Parametrisation, bool]:
        """The beginning of a batch with these labels (B,), and whether its images are of their classes already.

        Everything random is drawn on the CPU, so that it does not depend on the device, and at once.
        """
        spec, size = self._spec, self._spec.phases[0].resolution
        if spec.generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator))
            latents = torch.randn(len(labels), spec.generator.latent_dim, generator=generator)
            # A copy of what the batch before left: that a batch begins anew, or in halves, does not change it.
            network = copy.deepcopy(self._generator) or Generator(
                spec.generator, size, self._black, self._white, seed=seed
            )
            return Generated(spec, network.to(self._device), latents.to(self._device)), False
        shape = len(labels), len(self._black), size, size
        noise = pyramid_noise(shape, spec.pyramid_levels, generator).to(self._device)
        x, labelled = initial(noise, labels, self._earlier, generator, std=spec.init_std)
        return Pixels(spec, x, self._black, self._white), labelled

    def keep(self, made_of: Parametrisation, x: Tensor, labels: Tensor) -> None:
        """Keep of a finished batch what the next begins with: its images x (B, C, r, r), or its generator."""
        if self._spec.init == "earlier_batch":
            self._earlier = EarlierBatch(x, labels)
        if isinstance(made_of, Generated):
            self._generator = made_of.generator
