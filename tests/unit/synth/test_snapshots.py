"""Snapshots of a batch while it is optimised: what they show, and that nothing comes out differently for them."""

import math
from typing import Any

import pytest
import torch

from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.vision.images import quantise
from dearkd_synth.inversion import DeepInversion, Step
from dearkd_synth.snapshots import Camera, Snapshot

pytestmark = pytest.mark.slow


def resolve(teacher: TeacherSpec, **posted: Any) -> SynthesisSpec:
    small = {
        "teacher": "t",
        "images_per_class": 2,
        "batch_size": 10,
        "phases": [{"resolution": 16, "iterations": 3}, {"resolution": 32, "iterations": 3}],
        "unlabelled_iterations": 2,
    }
    return SynthesisSpec.resolve(small | posted, teacher)


def test_a_run_with_snapshots_makes_the_same_bytes_as_one_without(small_teacher) -> None:
    model, teacher = small_teacher()
    spec = resolve(teacher, statistics_memory=20, shard_samples=5)
    taken: list[Snapshot] = []

    def on_step(step: Step) -> None:
        assert step.camera is not None
        taken.append(step.camera.take(range(step.images), 24))

    made = []
    for told in (None, on_step):
        with DeepInversion(model, teacher, spec, on_step=told) as inversion:
            made.append([inversion.shard(index) for index in range(2)])
    assert len(taken) == 12
    for plain, watched in zip(*made, strict=True):
        assert torch.equal(plain.images, watched.images)
        assert torch.equal(plain.logits, watched.logits)
        assert [batch.losses for batch in plain.batches] == [batch.losses for batch in watched.batches]


def test_the_last_one_shows_the_images_that_come_out_and_the_first_those_that_begin(small_teacher) -> None:
    model, teacher = small_teacher()
    spec = resolve(teacher)
    taken: list[Snapshot] = []
    steps: list[Step] = []

    def on_step(step: Step) -> None:
        steps.append(step)
        taken.append(step.camera.take(range(step.images), teacher.image_size))

    with DeepInversion(model, teacher, spec, on_step=on_step) as inversion:
        made = inversion.batch([0, 1, 2, 3, 4] * 2, seed=5)
    assert [shot.labels is None for shot in taken] == [True] * 2 + [False] * 4
    last = taken[-1]
    assert last.labels is not None
    assert (last.images.dtype, last.images.shape, last.images.device.type) == (torch.uint8, (10, 3, 32, 32), "cpu")
    # Sorted by class, in their order, they are the batch: late labels only say which image is whose.
    for label in range(5):
        assert torch.equal(last.images[last.labels == label], made.images[made.labels == label])
    assert not torch.equal(taken[0].images, last.images)
    noise = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    begins = quantise(torch.nn.functional.interpolate(noise, size=32, mode="bilinear"), teacher)
    assert (taken[0].images.float() - begins.float()).abs().mean() < 40, "after one step it is still nearly that noise"
    with pytest.raises(ValueError, match="take snapshots of it while on_step runs"):
        steps[-1].camera.take([0], 8)


def test_some_of_a_batch_are_shown_in_the_order_and_size_asked_for() -> None:
    grey = {"num_classes": 3, "in_chans": 1, "image_size": 8, "mean": [0.5], "std": [0.5]}
    with Camera(TeacherSpec.check({"name": "t", "architecture": "resnet10t", **grey})) as camera:
        logits = torch.tensor([[0.0, 0.0, 0.0], [5.0, 1.0, 2.0], [3.0, 1.0, -1.0]])
        camera.aim(torch.stack([torch.full((1, 4, 4), value) for value in (-1.0, 0.0, 1.0)]), lambda: logits)
        bare = camera.take([1], 8)
        assert (bare.labels, bare.confidence) == (None, None)
        camera.labels = [1, 2, 0]
        shot = camera.take([2, 0], 6)
    assert shot.labels.tolist() == [0, 1]
    assert shot.confidence.tolist() == pytest.approx([math.exp(3) / (math.exp(3) + math.e + math.exp(-1)), 1 / 3])
    assert shot.images.shape == (2, 1, 6, 6)
    assert shot.images[:, 0, 3, 3].tolist() == [255, 0]


def test_nothing_is_copied_or_computed_where_nobody_asks(small_teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    model, teacher = small_teacher()

    def take(self: Camera, *_: object) -> Snapshot:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(Camera, "take", take)
    kept: list[Step] = []
    with DeepInversion(model, teacher, resolve(teacher), on_step=kept.append) as inversion:
        inversion.batch([0, 1], seed=0)
    assert all(step.camera is not None and step.camera._x is None for step in kept), "a kept step keeps no batch"
