"""Quality figures against loops over pairs, and the grid pixel by pixel."""

import io
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dearkd.vision.sample_grid import sample_grid
from dearkd_synth.quality import merge_quality, shard_quality
from dearkd_synth.synthesised import SynthesisedBatch, SynthesisedShard


def batch(size: int, seed: int, batch_norm_distance: float) -> SynthesisedBatch:
    generator = torch.Generator().manual_seed(seed)
    return SynthesisedBatch(
        images=torch.randint(256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator),
        labels=torch.arange(size) % 3,
        predicted=torch.randint(3, (size,), generator=generator),
        confidence=torch.rand(size, generator=generator),
        margin=torch.randn(size, generator=generator),
        features=torch.randn(size, 5, generator=generator),
        logits=torch.randn(size, 3, generator=generator),
        batch_norm_distance=batch_norm_distance,
        class_batch_norm_distance={label: batch_norm_distance + label for label in range(min(3, size))},
        first_layer_variance=1.0,
        losses={"total": 1.0},
    )


def shard(index: int, *sizes: int) -> SynthesisedShard:
    batches = [batch(size, 10 * index + i, 1.0 + i + index) for i, size in enumerate(sizes)]
    return SynthesisedShard(index=index, samples=range(sum(sizes)), batches=batches)


def pairwise_distances(made: SynthesisedShard) -> list[float]:
    """1 − cosine of every pair of one class."""
    return [
        1 - torch.nn.functional.cosine_similarity(made.features[i], made.features[j], dim=0).item()
        for i, j in itertools.combinations(range(len(made.labels)), 2)
        if made.labels[i] == made.labels[j]
    ]


def test_figures_of_a_shard() -> None:
    made = shard(0, 7, 4)
    quality = json.loads(json.dumps(shard_quality(made)))
    assert quality["samples"] == 11
    assert quality["teacher_accuracy"] == pytest.approx((made.predicted == made.labels).double().mean().item())
    assert quality["confidence"] == pytest.approx(made.confidence.mean().item(), rel=1e-5)
    assert quality["margin"] == pytest.approx(made.margin.mean().item(), rel=1e-5)
    assert quality["batch_norm_distance"] == pytest.approx((7 * 1.0 + 4 * 2.0) / 11)
    distances = pairwise_distances(made)
    assert quality["intra_class_diversity"] == pytest.approx(sum(distances) / len(distances), rel=1e-5)
    assert {label: figures["samples"] for label, figures in quality["classes"].items()} == {"0": 5, "1": 3, "2": 3}
    # Batches of 7 and 4 have 2 and 1 images of class 1.
    assert quality["classes"]["1"]["batch_norm_distance"] == pytest.approx((2 * 2.0 + 1 * 3.0) / 3)
    mine = made.labels == 1
    assert quality["classes"]["1"]["confidence"] == pytest.approx(made.confidence[mine].mean().item(), rel=1e-5)


def test_a_class_of_one_has_no_diversity() -> None:
    quality = shard_quality(shard(0, 3))
    assert quality["intra_class_diversity"] is None
    assert [figures["intra_class_diversity"] for figures in quality["classes"].values()] == [None] * 3


def test_merged_figures_are_those_of_all_samples_and_of_all_pairs_within_shards() -> None:
    made = [shard(0, 7, 4), shard(1, 2), shard(2, 9)]
    merged = merge_quality([shard_quality(one) for one in made])
    assert merged["samples"] == 22
    right = torch.cat([one.predicted == one.labels for one in made]).double()
    assert merged["teacher_accuracy"] == pytest.approx(right.mean().item())
    assert merged["margin"] == pytest.approx(torch.cat([one.margin for one in made]).mean().item(), rel=1e-5)
    distances = [distance for one in made for distance in pairwise_distances(one)]
    assert merged["intra_class_diversity"] == pytest.approx(sum(distances) / len(distances), rel=1e-5)
    assert merged["batch_norm_distance"] == pytest.approx((7 * 1.0 + 4 * 2.0 + 2 * 2.0 + 9 * 3.0) / 22)
    assert list(merged["classes"]) == ["0", "1", "2"]
    assert merged["classes"]["2"]["samples"] == 6
    # Of class 2 the batches of 7, 4 and 9 have 2, 1 and 3 images, that of 2 none.
    assert merged["classes"]["2"]["batch_norm_distance"] == pytest.approx((2 * 3.0 + 1 * 4.0 + 3 * 5.0) / 6)


def test_figures_that_an_earlier_version_did_not_know_are_left_out_of_a_mean() -> None:
    known, unknown = shard_quality(shard(0, 7)), shard_quality(shard(1, 7))
    for figures in unknown["classes"].values():
        del figures["batch_norm_distance"]
    merged = merge_quality([known, unknown])
    assert merged["classes"]["0"]["batch_norm_distance"] == known["classes"]["0"]["batch_norm_distance"]
    assert merge_quality([unknown])["classes"]["0"]["batch_norm_distance"] is None


def test_the_grid_has_a_row_for_each_class_and_shows_its_images() -> None:
    images = torch.randint(256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([5, 2, 5, 2, 5, 9, 2])
    grid = np.asarray(Image.open(io.BytesIO(sample_grid(images, labels, columns=2))))
    cell = 64
    assert grid.shape == (3 * (cell + 2) + 2, 2 * (cell + 2) + 2, 3)

    def shown(row: int, column: int) -> np.ndarray:
        top, left = 2 + row * (cell + 2), 2 + column * (cell + 2)
        return grid[top : top + cell, left : left + cell][::8, ::8]

    for row, column, index in [(0, 0, 1), (0, 1, 3), (1, 0, 0), (1, 1, 2), (2, 0, 5)]:
        np.testing.assert_array_equal(shown(row, column), images[index].permute(1, 2, 0).numpy())
    assert (shown(2, 1) == 128).all()


def test_names_stand_before_their_rows() -> None:
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 2])
    plain = np.asarray(Image.open(io.BytesIO(sample_grid(images, labels))))
    names = ["tench", "not asked for, and by far the longest", "hen\n of the 草原"]
    named = np.asarray(Image.open(io.BytesIO(sample_grid(images, labels, names=names))))
    margin = named.shape[1] - plain.shape[1]
    assert 30 < margin < 200
    np.testing.assert_array_equal(named[:, margin:], plain)
    ink = [bool((named[row * 66 : (row + 1) * 66, :margin] != 128).any()) for row in (0, 1)]
    assert ink == [True, True]


def test_the_grid_of_large_grey_images_stays_small() -> None:
    grid = Image.open(io.BytesIO(sample_grid(torch.zeros(2, 1, 224, 224, dtype=torch.uint8), torch.tensor([0, 1]))))
    assert grid.size == (116, 230)
