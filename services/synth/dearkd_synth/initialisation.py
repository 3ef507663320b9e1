"""The tensors that batches begin from: noise, or the images of the batch before them (`init`)."""

from collections import defaultdict
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from dearkd_synth.engine.resizing import resize

NOISE = 0.2
"""Standard deviation of the noise over earlier images, in the normalised space of the teacher's input [R]."""
SHIFT = 1 / 8
"""The most that an earlier image is moved, as a share of its side, in both directions and both axes [R]."""


class EarlierBatch(NamedTuple):
    """The optimised tensor (N, C, r, r) of a finished batch, and its labels (N,)."""

    x: Tensor
    labels: Tensor


def initial(
    noise: Tensor, labels: Tensor, earlier: EarlierBatch | None, generator: torch.Generator, *, std: float = 1.0
) -> tuple[Tensor, bool]:
    """Choose the tensor that a batch begins from.

    Each image begins as one of its class from the earlier batch, rolled at random, with some noise over it. If that
    batch lacks one of the classes, or there is none, all begin as noise.

    Args:
        noise: (B, C, r, r), normal.
        labels: (B,), of the batch.
        earlier: the batch before it in its shard; resized, where its resolution is another.
        generator: random numbers of this batch, on the CPU.
        std: what noise is multiplied by, where batches begin as such.

    Returns:
        (B, C, r, r), on the noise's device, and whether its images are of their labels' classes already.
    """
    if earlier is None:
        return std * noise, False
    found: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(earlier.labels.tolist()):
        found[label].append(place)
    wanted = labels.tolist()
    if not found.keys() >= set(wanted):
        return std * noise, False
    in_turn = {label: cycle(places) for label, places in found.items()}
    places = [next(in_turn[label]) for label in wanted]
    side = noise.shape[-1]
    images = resize(earlier.x[places], side)
    most = round(SHIFT * side)
    shifts = torch.randint(-most, most + 1, (len(places), 2), generator=generator).tolist()
    moved = [image.roll((down, right), (1, 2)) for image, (down, right) in zip(images, shifts, strict=True)]
    return torch.stack(moved) + NOISE * noise, True
