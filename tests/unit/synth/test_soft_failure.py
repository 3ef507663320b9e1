"""What goes wrong while images are made: a rate that is too high, a device that is too small."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dearkd.errors import Diverged, OutOfMemory
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd_synth.inversion import DeepInversion, Step
from dearkd_synth.quality import shard_quality

pytestmark = pytest.mark.slow


def resolve(teacher: TeacherSpec, **posted: Any) -> SynthesisSpec:
    small = {
        "teacher": "t",
        "images_per_class": 4,
        "batch_size": 10,
        "phases": [{"resolution": 16, "iterations": 3}],
        "weights": {"boundary": 0.0},
    }
    return SynthesisSpec.resolve(small | posted, teacher)


def test_a_batch_that_leaves_the_finite_numbers_starts_again_at_a_lower_rate(small_teacher) -> None:
    """1e20 overflows float32 in the squares of the statistics; a factor of 1e-19 away it does not."""
    model, teacher = small_teacher()
    steps: list[Step] = []
    wild = resolve(teacher, learning_rate=1e20, clip=False, restart_rate_factor=1e-10, max_restarts=2)
    with DeepInversion(model, teacher, wild, on_step=steps.append) as inversion:
        made = inversion.shard(0)
    assert [batch.restarts for batch in made.batches] == [2, 2]
    assert shard_quality(made)["restarts"] == 4
    assert [(step.batch, step.restarts, step.iteration) for step in steps if step.restarts == 2] == [
        (batch, 2, iteration) for batch in (0, 1) for iteration in (1, 2, 3)
    ]
    # From the same seed at that rate, the images are those that a spec of that rate makes.
    calm = resolve(teacher, learning_rate=1e20 * 1e-10**2, clip=False)
    with DeepInversion(model, teacher, calm) as inversion:
        again = inversion.shard(0)
    assert torch.equal(again.images, made.images)
    assert shard_quality(again)["restarts"] == 0


def test_a_loss_that_only_grows_is_a_divergence_too(small_teacher) -> None:
    """At a rate of 1e4 all stays finite; the squares in the statistics make 1e8 of it."""
    model, teacher = small_teacher()
    wild = {"learning_rate": 1e4, "clip": False, "restart_rate_factor": 1e-4, "statistics": "gaussian"}
    with DeepInversion(model, teacher, resolve(teacher, **wild)) as inversion:
        made = inversion.shard(0)
    assert [batch.restarts for batch in made.batches] == [1, 1]
    with DeepInversion(model, teacher, resolve(teacher, **wild, divergence_factor=1e30)) as inversion:
        kept = inversion.shard(0)
    assert [batch.restarts for batch in kept.batches] == [0, 0]
    assert kept.batches[0].losses["total"] > 1e5
    with (
        DeepInversion(model, teacher, resolve(teacher, **wild, max_restarts=0)) as inversion,
        pytest.raises(Diverged, match=r"came to a loss beyond .* \(divergence_factor\) within its first 2 iterations"),
    ):
        inversion.shard(0)


def test_after_the_last_restart_it_is_told_with_the_rate(small_teacher) -> None:
    model, teacher = small_teacher()
    spec = resolve(teacher, learning_rate=1e30, clip=False, max_restarts=1, restart_rate_factor=0.5)
    with (
        DeepInversion(model, teacher, spec) as inversion,
        pytest.raises(Diverged, match=r"lower learning_rate \(5e\+29 after 1 restarts\)") as caught,
    ):
        inversion.shard(0)
    assert not caught.value.retryable, "whoever makes the shard again, it does the same"


def test_on_the_cpu_it_is_noticed_at_the_step_itself(small_teacher) -> None:
    model, teacher = small_teacher()
    steps: list[int] = []
    phases = [{"resolution": 16, "iterations": 200}]
    spec = resolve(teacher, learning_rate=1e30, clip=False, max_restarts=0, phases=phases)
    with (
        DeepInversion(model, teacher, spec, on_step=lambda step: steps.append(step.iteration)) as inversion,
        pytest.raises(Diverged, match="within its first 2 iterations"),
    ):
        inversion.shard(0)
    assert steps == [1]


def limited(
    small_teacher, images: int, *, when_judging: bool = False, refused: list[int] | None = None
) -> tuple[nn.Module, TeacherSpec]:
    """A teacher on a device that holds so many images; the error is the one that torch raises on a GPU.

    With `when_judging` it lacks room for finished images alone; `refused` gets the size of each batch that was refused.
    """
    model, teacher = small_teacher()

    def refuse(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > images and not (when_judging and torch.is_grad_enabled()):
            if refused is not None:
                refused.append(len(inputs[0]))
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(inputs[0])} images")

    handle = model.register_forward_pre_hook(refuse)
    small = copy.deepcopy(model)
    handle.remove()
    return small, teacher


@pytest.mark.parametrize("when_judging", [False, True])
@pytest.mark.parametrize(
    ("batch", "room", "message"),
    [
        (10, 4, "2 of them do: set batch_size and classes_per_batch to at most 2"),
        (10, 5, "5 of them do: set batch_size to at most 5"),
        (35, 20, "17 of them do: set batch_size to at most 15"),  # which five classes divide
    ],
)
def test_too_little_memory_is_told_with_the_size_that_fits(
    small_teacher, batch: int, room: int, message: str, when_judging: bool
) -> None:
    model, teacher = limited(small_teacher, room, when_judging=when_judging)
    spec = resolve(teacher, images_per_class=batch // 5, batch_size=batch)
    with DeepInversion(model, teacher, spec) as inversion:
        with pytest.raises(OutOfMemory, match=message):
            inversion.shard(0)
        with pytest.raises(OutOfMemory, match=message):
            inversion.batch([0, 1, 2, 3, 4] * (batch // 5), seed=0)


def test_where_it_is_allowed_batches_are_halved_and_that_is_recorded(small_teacher) -> None:
    refused: list[int] = []
    model, teacher = limited(small_teacher, 5, refused=refused)
    spec = resolve(teacher, halve_batches=True)
    with DeepInversion(model, teacher, spec) as inversion:
        made = inversion.shard(0)
        assert refused == [10], "the second batch is cut before it fails"
        again = inversion.shard(0)
    assert [len(batch.labels) for batch in made.batches] == [5, 5, 5, 5]
    assert shard_quality(made)["halved_batches"] == 2
    assert torch.equal(made.images, again.images)
    assert made.labels.tolist() == [0, 1, 2, 3, 4] * 4
    whole, _ = small_teacher()
    with DeepInversion(whole, teacher, spec) as inversion:
        large = inversion.shard(0)
    assert shard_quality(large)["halved_batches"] == 0
    assert large.labels.tolist() == made.labels.tolist()


def test_when_not_even_one_image_fits_it_fails(small_teacher) -> None:
    model, teacher = small_teacher()
    spec = resolve(teacher, halve_batches=True)
    with DeepInversion(model, teacher, spec) as inversion:
        objective = inversion._objective
        assert objective is not None
        objective._teacher.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
        with pytest.raises(OutOfMemory, match="not even one does"):
            inversion.shard(0)
