"""What only a GPU can show: no step waits for it, the same bytes twice, and memory that runs out."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dearkd.errors import Diverged, OutOfMemory
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.work.own_offer import own_offer
from dearkd_synth import inversion as module
from dearkd_synth.inversion import DeepInversion, Step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def all_of_its_memory() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.set_per_process_memory_fraction(1.0)


def resolve(teacher: TeacherSpec, **posted: Any) -> SynthesisSpec:
    small = {
        "teacher": "t",
        "images_per_class": 4,
        "batch_size": 10,
        "phases": [{"resolution": 16, "iterations": 12}, {"resolution": 32, "iterations": 12}],
        "statistics_memory": 20,
    }
    return SynthesisSpec.resolve(small | posted, teacher)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_step_waits_for_the_device(small_teacher, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Only the first and the last of a batch do, to read the losses."""
    monkeypatch.setattr(module, "STEPS_BETWEEN_READINGS", 1000)
    model, teacher = small_teacher("resnet10t")

    def on_step(step: Step) -> None:
        torch.cuda.set_sync_debug_mode("error" if step.iteration < step.iterations - 1 else "default")

    spec = resolve(teacher, precision=precision)
    with DeepInversion(model, teacher, spec, device=DEVICE, on_step=on_step) as inversion:
        assert len(inversion.shard(0).images) == 20


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bytes_twice(small_teacher, precision: str) -> None:
    model, teacher = small_teacher("resnet10t")
    spec = resolve(teacher, precision=precision)
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        with DeepInversion(model, teacher, spec, device=DEVICE) as inversion:
            made.append(inversion.shard(0))
    assert torch.equal(made[0].images, made[1].images)
    assert torch.equal(made[0].logits, made[1].logits)
    assert [batch.losses for batch in made[0].batches] == [batch.losses for batch in made[1].batches]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_step_makes_the_same_images_but_for_rounding_and_the_same_bytes_twice(
    small_teacher, precision: str
) -> None:
    """Few steps, in which rounding does not grow; the second compilation knows nothing of the first."""
    model, teacher = small_teacher("resnet10t")
    phases = [{"resolution": 16, "iterations": 2}, {"resolution": 32, "iterations": 2}]
    made = []
    for compile_it in (False, True, True):
        torch.compiler.reset()
        spec = resolve(teacher, precision=precision, phases=phases, compile=compile_it)
        with (
            torch._inductor.config.patch(fx_graph_cache=False),
            torch._functorch.config.patch(enable_autograd_cache=False),
            DeepInversion(model, teacher, spec, device=DEVICE) as inversion,
        ):
            made.append(inversion.shard(0))
    plain, found, again = made
    tolerance = 1e-2 if precision == "float32" else 5e-2  # convolutions may round to TensorFloat-32
    for one, other in zip(plain.batches, found.batches, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=tolerance, abs=tolerance)
    assert (found.images.int() - plain.images.int()).abs().float().mean() < 5
    assert torch.equal(again.images, found.images)
    assert torch.equal(again.logits, found.logits)


def test_a_divergence_is_noticed_long_before_the_next_reading(small_teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS_BETWEEN_READINGS", 10_000)
    model, teacher = small_teacher()
    steps: list[int] = []

    def on_step(step: Step) -> None:
        steps.append(step.iteration)
        torch.cuda.synchronize()  # so that what was asked for is done, whatever else the device has to do

    phases = [{"resolution": 16, "iterations": 2000}]
    spec = resolve(teacher, learning_rate=1e30, clip=False, max_restarts=0, phases=phases)
    with (
        DeepInversion(model, teacher, spec, device=DEVICE, on_step=on_step) as inversion,
        pytest.raises(Diverged, match="left the finite numbers"),
    ):
        inversion.shard(0)
    assert max(steps) < 10


def test_memory_that_runs_out_is_told_or_lived_with(small_teacher) -> None:
    model, teacher = small_teacher("resnet10t", image_size=64)
    posted = {"images_per_class": 400, "batch_size": 2000, "phases": [{"resolution": 64, "iterations": 1}]}
    spec = resolve(teacher, **posted)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3 * 2**29) / total)
    with (
        DeepInversion(model, teacher, spec, device=DEVICE) as inversion,
        pytest.raises(OutOfMemory, match=r"\d+ of them do: set batch_size to at most \d+"),
    ):
        inversion.shard(0)
    with DeepInversion(model, teacher, resolve(teacher, **posted, halve_batches=True), device=DEVICE) as inversion:
        made = inversion.shard(0)
    assert made.halved > 0
    assert len(made.images) == 2000


def test_a_worker_says_which_gpu_it_has() -> None:
    """Asked of torch in a process of its own, since who asks forks."""
    offer = own_offer(Settings())
    properties = torch.cuda.get_device_properties(0)
    assert (offer.device, offer.name, offer.memory_bytes) == ("cuda", properties.name, properties.total_memory)
    assert offer.devices == torch.cuda.device_count()
