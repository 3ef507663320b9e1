"""What the benchmarks measure with: precision and recall by loops over pairs, and the task of photographs."""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("manifolds", "tasks", "formulations", "budget", "ablation", "arms", "inversion_step"):
        sys.modules.pop(name, None)


def covered(points: Tensor, manifold: Tensor, k: int) -> float:
    """By the paper's equation 1, pair by pair."""
    hits = 0
    for point in points.tolist():
        for i, centre in enumerate(manifold.tolist()):
            others = sorted(math.dist(centre, other) for j, other in enumerate(manifold.tolist()) if j != i)
            if math.dist(point, centre) <= others[k - 1]:
                hits += 1
                break
    return hits / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_coverage_equals_loops_over_pairs(k: int) -> None:
    from manifolds import coverage

    generator = torch.Generator().manual_seed(0)
    real = torch.randn(40, 3, generator=generator)
    made = 0.7 * torch.randn(40, 3, generator=generator) + 0.8
    found = coverage(real, made, k=k)
    assert found.precision == pytest.approx(covered(made, real, k))
    assert found.recall == pytest.approx(covered(real, made, k))
    assert 0 < found.recall < 1
    assert 0 < found.precision < 1
    assert found.recall != found.precision


def test_coverage_of_extremes() -> None:
    from manifolds import coverage

    generator = torch.Generator().manual_seed(1)
    real = torch.randn(60, 4, generator=generator)
    assert coverage(real, real) == (1.0, 1.0)
    assert coverage(real, real + 100) == (0.0, 0.0)
    collapsed = real[:1] + 1e-3 * torch.randn(60, 4, generator=generator)
    precision, recall = coverage(real, collapsed)
    assert precision == 1
    assert recall <= 1 / 60
    with pytest.raises(ValueError, match="as many of each"):
        coverage(real, real[:50])


def test_photographs_are_the_same_each_time_and_as_many_as_asked_for() -> None:
    from tasks import PHOTOGRAPHS, photographs

    one, again = (photographs(train_per_class=2, held_out_per_class=1) for _ in range(2))
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.held_out_images, again.held_out_images)
    assert len(one.class_names) == len(PHOTOGRAPHS) >= 20
    assert one.images.shape == (2 * len(PHOTOGRAPHS), 3, 32, 32)
    assert one.labels.bincount().tolist() == [2] * len(PHOTOGRAPHS)
    assert one.held_out_labels.tolist() == list(range(len(PHOTOGRAPHS)))
    colours = (one.images.float().amax(1) - one.images.float().amin(1)).flatten(1).amax(1)
    assert (colours > 20).sum() >= 2 * 11, "eleven are in colour"


def test_no_crop_has_a_pixel_of_a_cell_that_is_not_its_own(tmp_path: Path) -> None:
    """A picture whose held-out cells are red and whose others are blue: no crop has both."""
    import numpy as np
    from PIL import Image
    from tasks import GRID, HELD_OUT, crops

    pixels = np.zeros((4 * 43, 4 * 57, 3), dtype=np.uint8)
    for row in range(GRID):
        for column in range(GRID):
            channel = 0 if (row, column) in HELD_OUT else 2
            pixels[row * 43 : row * 43 + 43, column * 57 : column * 57 + 57, channel] = 255
    Image.fromarray(pixels).save(tmp_path / "cells.png")
    seen = [(row, column) for row in range(GRID) for column in range(GRID) if (row, column) not in HELD_OUT]
    assert len(seen) == 12
    for cells, channel in ((seen, 2), (HELD_OUT, 0)):
        made = crops(tmp_path / "cells.png", cells, 60, np.random.default_rng(0))
        assert made.shape == (60, 3, 32, 32)
        assert (made[:, channel] == 255).all()
        assert (made[:, 2 - channel] == 0).all()


@pytest.mark.parametrize("name", ["hooks", "reference"])
def test_other_formulations_of_a_step_have_the_same_loss(small_teacher, name: str) -> None:
    """What is timed beside the engine's step computes the engine's terms, the reference all but the boundary's."""
    import copy

    from formulations import FORMULATIONS

    from dearkd.specs import SynthesisSpec
    from dearkd_synth.objective.objective import Objective

    model, teacher = small_teacher()
    weights = {"total_variation_l1": 0.1, "total_variation_l2": 0.1, "l2": 0.1}
    weights |= {"boundary": 0.0} if name == "reference" else {"boundary": 2.0}
    posted = {"teacher": "t", "statistics": "l2", "images_per_class": 2, "weights": weights}
    posted["first_batch_norm_weight"] = 7.0
    spec = SynthesisSpec.resolve(posted, teacher)
    labels = torch.tensor([0, 0, 1, 1])
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    objective = Objective(spec, copy.deepcopy(model).requires_grad_(False))
    expected = objective.total(objective.losses(x, x, labels))
    ours = x.clone().requires_grad_()
    formulation = FORMULATIONS[name](copy.deepcopy(model).requires_grad_(False), spec, ours, labels)
    torch.testing.assert_close(formulation.loss(ours).detach(), expected, rtol=1e-4, atol=1e-4)
    formulation()
    assert not torch.equal(ours, x)


def test_budgets_of_all_methods(small_teacher) -> None:
    """The published settings by the numbers of docs/method.md; ours and DeepInversion in passes as asked for."""
    import argparse

    from arms import Network
    from budget import posted
    from tasks import Task

    from dearkd.specs import SynthesisSpec

    model, spec = small_teacher(in_chans=1, num_classes=10)
    nothing = torch.zeros(0, 1, 32, 32)
    task = Task("digits", [str(i) for i in range(10)], nothing, nothing, nothing, nothing, {"flip": 0.0})
    asked = argparse.Namespace(synthesis="{}", images_per_class=16, reference_steps=2000)

    def resolved(method: str, factor: float) -> SynthesisSpec:
        body = posted(asked, task, Network(model, spec), method, factor)
        return SynthesisSpec.resolve({"teacher": "t"} | body, spec)

    ours = SynthesisSpec.resolve({"teacher": "t", "images_per_class": 16}, spec)
    assert resolved("ours", 1.0) == ours
    assert resolved("ours", 0.25).teacher_passes * 4 == ours.teacher_passes
    of_pixels = SynthesisSpec.resolve({"teacher": "t", "images_per_class": 16, "generator": None}, spec)
    for method in ("published", "published-clipped", "ours-at-full-size"):
        made = resolved(method, 0.5)
        assert made.generator is None
        assert [(p.resolution, p.input_size, p.iterations) for p in made.phases] == [(32, 32, 1000)]
        assert (made.num_samples, made.batch_size, made.seed) == (ours.num_samples, of_pixels.batch_size, ours.seed)
        assert made.weights.boundary == made.weights.adaptive == 0
    same = resolved("ours-at-full-size", 1.0)
    assert (same.weights.batch_norm, same.learning_rate) == (of_pixels.weights.batch_norm, of_pixels.learning_rate)
    published = resolved("published", 1.0)
    assert (published.weights.cross_entropy, published.weights.batch_norm) == (1, 10)
    assert published.weights.total_variation_l2 / math.sqrt(published.batch_size) == pytest.approx(2.5e-5)
    assert (published.learning_rate, published.schedule, published.clip, published.jitter) == (
        0.05,
        "constant",
        False,
        2,
    )
    assert published.model_copy(update={"clip": True}) == resolved("published-clipped", 1.0)


def test_the_nearest_of_a_class_by_loops() -> None:
    from arms import nearest_of_class

    generator = torch.Generator().manual_seed(3)
    features = torch.randn(14, 5, generator=generator)
    labels = torch.tensor([0, 1] * 7)
    nearest = []
    for i in range(14):
        others = [j for j in range(14) if j != i and labels[j] == labels[i]]
        nearest.append(max(torch.cosine_similarity(features[i], features[j], dim=0).item() for j in others))
    assert nearest_of_class(features, labels) == pytest.approx(sorted(nearest)[6], abs=1e-6), "the lower median of 14"
    twins = torch.cat([features, features])
    assert nearest_of_class(twins, torch.cat([labels, labels])) == pytest.approx(1.0)


@pytest.mark.slow
def test_every_other_window_has_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    import inversion_step

    monkeypatch.setattr(inversion_step, "WINDOW_SECONDS", 0.05)
    monkeypatch.setattr(inversion_step.OnlyDrawn, "_show", shown := CountingShows(inversion_step.OnlyDrawn._show))
    options = [
        "--architecture",
        "test_resnet",
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--previews",
        "--windows",
        "6",
    ]
    figures = inversion_step.measure_previews(inversion_step.parse([*options, "--json"]))
    assert shown.count == 3
    assert figures["previews_ratio"] == pytest.approx(
        figures["step_with_previews_milliseconds"] / figures["step_milliseconds"], rel=0.01
    )
    assert figures["picture_bytes"] > 1000


class CountingShows:
    """Counts how often a picture was drawn."""

    def __init__(self, show: Callable[..., None]) -> None:
        self.count = 0
        self._show = show

    def __get__(self, instance: Any, owner: Any) -> Callable[..., None]:
        def show(*arguments: Any) -> None:
            self.count += 1
            self._show(instance, *arguments)

        return show
