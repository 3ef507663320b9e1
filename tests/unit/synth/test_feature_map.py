"""The map of a dataset by the teacher's features, against scikit-learn's principal components."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dearkd.data.feature_maps import POINTS
from dearkd_synth.feature_map import SHARDS, feature_map, mapped_shards, principal_components, shard_part
from dearkd_synth.synthesised import SynthesisedBatch, SynthesisedShard


def made(count: int, *, first: int = 0, width: int = 24) -> SynthesisedShard:
    """A shard of random features of three classes, which lie apart."""
    generator = torch.Generator().manual_seed(first)
    labels = torch.arange(count) % 3
    features = torch.randn(count, width, generator=generator)
    features[:, 0] += 9 * labels
    batch = SynthesisedBatch(
        images=torch.zeros(count, 1, 2, 2, dtype=torch.uint8),
        labels=labels,
        predicted=(labels + (torch.arange(count) == 4)) % 3,
        confidence=torch.ones(count),
        margin=torch.arange(count) / 2,
        features=features,
        logits=torch.zeros(count, 3),
        batch_norm_distance=0.0,
        class_batch_norm_distance={},
        first_layer_variance=1.0,
        losses={},
    )
    return SynthesisedShard(index=0, samples=range(first, first + count), batches=[batch])


@pytest.mark.parametrize(("count", "width"), [(50, 8), (20, 100)])
def test_it_has_scikit_learns_components(count: int, width: int) -> None:
    features = made(count, width=width).features.double()
    places, explained = principal_components(features)
    judge = PCA(2, svd_solver="full")
    theirs = judge.fit_transform(features.numpy())
    np.testing.assert_allclose(np.abs(places.numpy()), np.abs(theirs), atol=1e-9)
    np.testing.assert_allclose(explained, judge.explained_variance_ratio_, atol=1e-12)


def test_points_are_samples_of_all_shards_and_classes_lie_apart() -> None:
    shards = [made(30), made(30, first=30)]
    found = feature_map([shard_part(shard, 2) for shard in shards])
    assert found is not None
    assert [point.key for point in found.points] == [f"{i:09d}" for i in range(60)]
    assert [point.label for point in found.points] == [i % 3 for i in range(60)]
    assert [i for i, point in enumerate(found.points) if point.teacher_label != point.label] == [4, 34]
    assert found.points[7].margin == 3.5
    assert max(max(abs(point.x), abs(point.y)) for point in found.points) == 1.0
    centres = [np.mean([point.x for point in found.points if point.label == label]) for label in range(3)]
    assert sorted(centres, reverse=bool(centres[0] > centres[2])) == centres
    assert min(np.diff(sorted(centres))) > 0.4
    assert found.explained_variance[0] > 0.6 > 0.1 > found.explained_variance[1]


def test_it_stays_small_and_needs_three_points() -> None:
    many = mapped_shards(10_000)
    assert (len(many), many[0]) == (SHARDS, 0)
    assert len(set(np.diff(many))) <= 2, "spread evenly"
    assert mapped_shards(3) == [0, 1, 2]
    found = feature_map([shard_part(made(40, first=40 * i), 10_000) for i in range(SHARDS)])
    assert found is not None
    assert len(found.points) == POINTS
    assert feature_map([shard_part(made(2), 1)]) is None
    assert feature_map([]) is None


def test_images_that_are_all_alike_lie_at_one_place() -> None:
    places, explained = principal_components(torch.ones(5, 4, dtype=torch.float64))
    assert places.abs().max() < 1e-6
    assert explained == [0.0, 0.0]
