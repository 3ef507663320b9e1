"""A map of a dataset: some of its images as points, by the principal components of the teacher's features.

Each of a few shards leaves the features of a few of its samples; the last unit of the job joins them. So no shard is
read again, and what is kept does not grow with the dataset.
"""

from collections.abc import Sequence
from typing import Final

import torch
from safetensors.torch import load, save
from torch import Tensor

from dearkd.data.feature_maps import POINTS, FeatureMap, MapPoint
from dearkd.vision.shard_writer import sample_key
from dearkd_synth.synthesised import SynthesisedShard

SHARDS: Final = 64
"""The most shards that leave features."""


def mapped_shards(count: int) -> list[int]:
    """The shards of `count` that leave features, spread evenly."""
    return _spread(count, SHARDS)


def shard_part(shard: SynthesisedShard, shards: int) -> bytes:
    """The part of a map that one of `shards` shards leaves, as safetensors: some samples, spread evenly over it.

    Tensors: `features` (n, D) float32, `labels`, `predicted` and `samples` (n,) int64, `margin` (n,) float32.
    """
    share = -(-POINTS // len(mapped_shards(shards)))
    rows = _spread(len(shard.labels), share)
    return save(
        {
            "features": shard.features[rows].float(),
            "labels": shard.labels[rows],
            "predicted": shard.predicted[rows],
            "margin": shard.margin[rows].float(),
            "samples": torch.tensor([shard.samples[row] for row in rows]),
        }
    )


def feature_map(parts: Sequence[bytes]) -> FeatureMap | None:
    """The map of a dataset, from what `shard_part` made of its shards; None with fewer than three points.

    The largest coordinate is 1 or -1.
    """
    read = [load(part) for part in parts]
    if sum(len(part["labels"]) for part in read) < 3:
        return None
    rows = _spread(sum(len(part["labels"]) for part in read), POINTS)
    joined = {name: torch.cat([part[name] for part in read])[rows] for name in read[0]}
    places, (along_x, along_y) = principal_components(joined["features"].double())
    places /= places.abs().max().clamp(min=1e-12)
    points = [
        MapPoint(
            key=sample_key(int(joined["samples"][i])),
            label=int(joined["labels"][i]),
            teacher_label=int(joined["predicted"][i]),
            margin=round(joined["margin"][i].item(), 3),
            x=round(places[i, 0].item(), 4),
            y=round(places[i, 1].item(), 4),
        )
        for i in range(len(places))
    ]
    return FeatureMap(explained_variance=(round(along_x, 4), round(along_y, 4)), points=points)


def principal_components(features: Tensor) -> tuple[Tensor, list[float]]:
    """The first two principal components (n, 2) of features (n, D), and each one's fraction of the variance.

    By the eigenvectors of the n × n matrix of inner products: there are few points and many features. The sign is the
    one with which a component's largest value is positive.
    """
    centred = features - features.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values, vectors = values.flip(0)[:2].clamp(min=0), vectors.flip(1)[:, :2]
    places = vectors * values.sqrt()
    largest = places.gather(0, places.abs().argmax(dim=0, keepdim=True))
    total = centred.square().sum().clamp(min=1e-12)
    return places * torch.where(largest < 0, -1.0, 1.0), (values / total).tolist()


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, spread evenly."""
    number = min(count, most)
    return [place * count // number for place in range(number)]
