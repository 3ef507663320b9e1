"""What made images give away of the real ones that the teacher learnt from: how near each comes to one of them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Distance = Callable[[Tensor, Tensor], Tensor]


def pixel_distance(one: Tensor, other: Tensor) -> Tensor:
    """(N, M): Euclidean distances of images, uint8, of pixels in [0, 1]."""
    return torch.cdist(one.flatten(1).float() / 255, other.flatten(1).float() / 255)


def feature_distance(one: Tensor, other: Tensor) -> Tensor:
    """(N, M): one minus the cosine of features."""
    return 1 - F.normalize(one.float(), dim=1) @ F.normalize(other.float(), dim=1).T


def nearest(points: Tensor, training: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """Of each point (N, …) the distance to the nearest of the training's (M, …), and its place."""
    best = torch.full((len(points),), torch.inf)
    place = torch.zeros(len(points), dtype=torch.long)
    begin = 0
    for part in training.split(5_000):
        values, indices = distance(points, part).min(dim=1)
        nearer = values < best
        best[nearer], place[nearer] = values[nearer], indices[nearer] + begin
        begin += len(part)
    return best, place


def given_away(made: Tensor, held_out: Tensor, training: Tensor, distance: Distance) -> dict[str, float]:
    """How near made samples come to training's, beside real ones that nobody has seen.

    Returns:
        `made` and `held_out`: the median distance to the nearest of the training's; `closer`: the share of the made
        ones that lie closer than all but the nearest hundredth of the held-out ones.
    """
    ours, _ = nearest(made, training, distance)
    theirs, _ = nearest(held_out, training, distance)
    return {
        "made": ours.median().item(),
        "held_out": theirs.median().item(),
        "closer": (ours < theirs.quantile(0.01)).double().mean().item(),
    }
