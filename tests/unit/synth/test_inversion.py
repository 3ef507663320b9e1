"""The optimisation: what it makes, that it can be repeated, and what it leaves behind."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.errors import Canceled, Diverged, InvalidInput
from dearkd.specs import SynthesisSpec, SynthesisWeights, TeacherSpec
from dearkd.vision.images import pixel_range, to_input
from dearkd.vision.teachers import features_and_logits, load_teacher
from dearkd_synth.engine.resizing import resize
from dearkd_synth.inversion import DeepInversion, Step, SynthesisedShard, batch_seed, rate_factor

pytestmark = pytest.mark.slow


def resolve(teacher_spec: TeacherSpec, **posted: Any) -> SynthesisSpec:
    """A spec of two shards of two batches each, unless it says otherwise."""
    small = {
        "teacher": "t",
        "images_per_class": 8,
        "batch_size": 10,
        "shard_samples": 20,
        "phases": [{"resolution": 16, "iterations": 2}, {"resolution": 32, "iterations": 2}],
    }
    return SynthesisSpec.resolve(small | posted, teacher_spec)


def equal(one: SynthesisedShard, other: SynthesisedShard) -> bool:
    return torch.equal(one.images, other.images) and [b.losses for b in one.batches] == [
        b.losses for b in other.batches
    ]


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("image_size", [32, 64])
def test_a_spec_that_names_only_its_teacher_works(small_teacher, in_chans: int, image_size: int) -> None:
    """All defaults, of which only the number of iterations is cut afterwards."""
    model, teacher_spec = small_teacher(in_chans=in_chans, image_size=image_size, num_classes=3)
    spec = SynthesisSpec.resolve({"teacher": "t"}, teacher_spec)
    spec = spec.model_copy(update={"phases": [p.model_copy(update={"iterations": 1}) for p in spec.phases]})
    with DeepInversion(model, teacher_spec, spec) as inversion:
        shard = inversion.shard(spec.num_shards - 1)
    assert shard.images.shape == (spec.shard_lengths()[-1], in_chans, image_size, image_size)
    assert shard.images.dtype == torch.uint8
    assert set(shard.labels.tolist()) <= {0, 1, 2}


def test_the_same_spec_gives_the_same_bytes_whatever_was_made_before(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    spec = resolve(teacher_spec)
    with DeepInversion(model, teacher_spec, spec) as inversion:
        first, second = inversion.shard(0), inversion.shard(1)
    with DeepInversion(model, teacher_spec, spec) as inversion:
        torch.manual_seed(99)  # the process's own random state is nobody's business
        assert equal(inversion.shard(1), second)
        assert equal(inversion.shard(0), first)
    assert not torch.equal(first.images, second.images)
    other = resolve(teacher_spec, seed=1)
    with DeepInversion(model, teacher_spec, other) as inversion:
        assert not torch.equal(inversion.shard(0).images, first.images)


def test_what_is_said_of_the_images_is_true_of_the_stored_pixels(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    spec = resolve(teacher_spec)
    with DeepInversion(model, teacher_spec, spec) as inversion:
        shard = inversion.shard(1)
    assert list(shard.samples) == list(range(20, 40))
    assert shard.labels.tolist() == [0, 1, 2, 3, 4] * 4
    with torch.no_grad():
        features, logits = features_and_logits(model, to_input(shard.images, teacher_spec))
    torch.testing.assert_close(shard.features, features, rtol=1e-4, atol=1e-5)
    assert shard.predicted.tolist() == logits.argmax(1).tolist()
    for i, label in enumerate(shard.labels.tolist()):
        others = max(value for k, value in enumerate(logits[i].tolist()) if k != label)
        assert shard.margin[i].item() == pytest.approx(logits[i, label].item() - others, abs=1e-4)
        assert shard.confidence[i].item() == pytest.approx(logits[i].softmax(0)[label].item(), abs=1e-4)


def test_the_loss_falls_on_every_family_and_the_teacher_is_left_as_it_was(
    family_teacher: tuple[nn.Module, TeacherSpec],
) -> None:
    model, teacher_spec = family_teacher
    before = copy.deepcopy(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    totals: list[float] = []
    # Steps without labels lack terms: totals could not be compared.
    short = {"phases": [{"resolution": 16, "iterations": 8}], "jitter": 0, "unlabelled_iterations": 0}
    spec = resolve(teacher_spec, images_per_class=2, **short)
    with DeepInversion(
        model, teacher_spec, spec, on_step=lambda step: totals.append(step.losses["total"])
    ) as inversion:
        shard = inversion.shard(0)
    assert shard.batches[0].losses["total"] == totals[-1] < totals[0]
    assert set(shard.batches[0].losses) == {n for n, weight in spec.weights.model_dump().items() if weight} | {"total"}
    assert_untouched(model, before, kinds)


def test_cancelling_in_a_step_leaves_nothing_behind(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    before, kinds = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    canceled = True

    def cancel(step: Step) -> None:
        if canceled and (step.batch, step.iteration) == (1, 3):
            raise Canceled("asked to stop")

    spec = resolve(teacher_spec)
    with DeepInversion(model, teacher_spec, spec, on_step=cancel) as inversion:
        with pytest.raises(Canceled):
            inversion.shard(0)
        canceled = False
        again = inversion.shard(0)
    with DeepInversion(model, teacher_spec, spec) as inversion:
        assert equal(inversion.shard(0), again)
    assert_untouched(model, before, kinds)


def assert_untouched(model: nn.Module, state: dict[str, Tensor], kinds: list[type]) -> None:
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [type(module) for module in model.modules()] == kinds
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_every_step_is_told(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    steps: list[Step] = []
    with DeepInversion(model, teacher_spec, resolve(teacher_spec), on_step=steps.append) as inversion:
        inversion.shard(1)
    assert [(step.batch, step.iteration) for step in steps] == [(b, i) for b in (0, 1) for i in (1, 2, 3, 4)]
    assert [step.images_done for step in steps] == [0] * 4 + [10] * 4
    assert {(step.shard, step.iterations, step.images) for step in steps} == {(1, 4, 10)}
    assert all(math.isfinite(step.losses["total"]) for step in steps)
    assert [step.share for step in steps] == [0.25, 0.5, 0.75, 1.0] * 2
    # A step that shows a quarter of the pixels is a quarter of the work.
    phases = [{"resolution": 16, "input_size": 16, "iterations": 2}, {"resolution": 32, "iterations": 2}]
    steps.clear()
    with DeepInversion(model, teacher_spec, resolve(teacher_spec, phases=phases), on_step=steps.append) as inversion:
        inversion.batch([0, 1], seed=0)
    assert [step.share for step in steps] == [0.1, 0.2, 0.6, 1.0]


def views(small_teacher, teacher_size: int = 32, **posted: Any) -> tuple[list[Tensor], SynthesisSpec, TeacherSpec]:
    """What the teacher was shown at each step, of images that hardly move (a rate of 1e-9)."""
    model, teacher_spec = small_teacher(image_size=teacher_size)
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    spec = resolve(teacher_spec, learning_rate=1e-9, images_per_class=2, **posted)
    inversion = DeepInversion(model, teacher_spec, spec)
    seen.clear()
    inversion.batch([0, 1, 2, 3, 4], seed=0)
    handle.remove()
    return seen[: spec.teacher_passes // spec.num_samples], spec, teacher_spec


def test_the_teacher_sees_each_phase_at_its_input_size(small_teacher) -> None:
    phases = [
        {"resolution": 8, "input_size": 24, "iterations": 2},
        {"resolution": 24, "input_size": 24, "iterations": 1},
        {"resolution": 24, "iterations": 2},
    ]
    seen, _, teacher_spec = views(small_teacher, phases=phases, jitter=0, flip=0.0)
    assert [view.shape[-1] for view in seen] == [24, 24, 24, 32, 32]
    # The true low resolution: every view of the first phase is the upsampling of 8×8 values.
    black, white = pixel_range(teacher_spec, seen[0])
    start = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(seen[0], F.interpolate(start, size=24, mode="bilinear"), rtol=0, atol=1e-5)
    clipped = start.clamp(black, white)
    torch.testing.assert_close(seen[1], F.interpolate(clipped, size=24, mode="bilinear"), rtol=0, atol=1e-5)
    # Between phases the tensor itself is upsampled, and goes on from there.
    torch.testing.assert_close(seen[2], seen[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[4], F.interpolate(seen[2], size=32, mode="bilinear"), rtol=0, atol=1e-5)


def test_without_clip_values_go_beyond_the_pixel_range(small_teacher) -> None:
    phases = [{"resolution": 32, "iterations": 2}]
    clipped, _, teacher_spec = views(small_teacher, phases=phases, clip=True)
    free, _, _ = views(small_teacher, phases=phases, clip=False)
    black, white = pixel_range(teacher_spec, free[1])
    assert ((clipped[1] >= black) & (clipped[1] <= white)).all()
    assert not ((free[1] >= black) & (free[1] <= white)).all()


def test_rolls_stay_within_the_jitter_and_reach_it(small_teacher) -> None:
    phases = [{"resolution": 16, "input_size": 16, "iterations": 40}]
    seen, _, _ = views(small_teacher, phases=phases, jitter=2, flip=0.0)
    shifts = shifts_from_second(seen)
    # The second view is rolled itself, so only the width of the range is known: that of −2 to 2.
    for axis in (0, 1):
        assert max(shift[axis] for shift in shifts) - min(shift[axis] for shift in shifts) == 4


def shifts_from_second(seen: list[Tensor]) -> list[tuple[int, int]]:
    """How far each view, from the second on, is rolled from the second; the first is not clipped yet."""
    return [
        next(
            (down, right)
            for down, right in itertools.product(range(-8, 8), repeat=2)
            if torch.allclose(view, seen[1].roll((down, right), (2, 3)), atol=1e-5)
        )
        for view in seen[1:]
    ]


@pytest.mark.parametrize(("flip", "flipped"), [(0.0, {False}), (1.0, {True}), (0.5, {False, True})])
def test_flips(small_teacher, flip: float, flipped: set[bool]) -> None:
    phases = [{"resolution": 32, "iterations": 12}]
    upright, _, _ = views(small_teacher, phases=phases, jitter=0, flip=0.0)
    seen, _, _ = views(small_teacher, phases=phases, jitter=0, flip=flip)
    found = {torch.allclose(view, original.flip(3), atol=1e-5) for view, original in zip(seen, upright, strict=True)}
    assert found == flipped


def test_the_jitter_shrinks_with_the_input_size_as_published(small_teacher) -> None:
    """±30 pixels at 224 are ±15 at 112: here ±4 at 32 and ±2 at 16."""
    phases = [{"resolution": 16, "input_size": 16, "iterations": 30}, {"resolution": 32, "iterations": 1}]
    seen, _, _ = views(small_teacher, phases=phases, jitter=4, flip=0.0)
    shifts = [down for down, _ in shifts_from_second(seen[:30])]
    assert max(shifts) - min(shifts) == 4


def test_the_boundary_term_sees_the_images_made_before(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    spec = resolve(teacher_spec, boundary_margin=-100.0, weights={"boundary": 10.0})
    with DeepInversion(model, teacher_spec, spec) as inversion:
        alone = inversion.batch([0, 1, 2, 3, 4], seed=1)
        inversion.batch([0, 1, 2, 3, 4], seed=0)
        after = inversion.batch([0, 1, 2, 3, 4], seed=1, continue_shard=True)
        again = inversion.batch([0, 1, 2, 3, 4], seed=1)
    # One image a class: without those made before no sample has a positive.
    assert alone.losses["boundary"] == 0
    assert after.losses["boundary"] > 0
    assert torch.equal(again.images, alone.images)


def test_a_shard_shows_its_first_batches_to_the_boundary_term_of_the_later_ones(small_teacher) -> None:
    """One image a class in each batch: only those of earlier batches can be positives, and none of other shards."""
    model, teacher_spec = small_teacher()
    spec = resolve(teacher_spec, images_per_class=4, batch_size=5, shard_samples=10, boundary_margin=-100.0)
    spec = spec.model_copy(update={"weights": spec.weights.model_copy(update={"boundary": 10.0})})
    with DeepInversion(model, teacher_spec, spec) as inversion:
        for index in (0, 1):
            first, second = inversion.shard(index).batches
            assert first.losses["boundary"] == 0
            assert second.losses["boundary"] > 0


# The preset lets an image choose its label by what it looks like, which takes more iterations than a test has.
FOR_SHORT_RUNS: dict[str, Any] = {
    "unlabelled_iterations": 0,
    "learning_rate": 0.2,
    "weights": {"cross_entropy": 2.0, "batch_norm": 0.5},
}


def test_real_digits_come_out(digits_teacher: tuple[TeacherSpec, Path]) -> None:
    """A teacher of real digits recognises nearly all of a small batch, and few of its noise."""
    teacher_spec, weights = digits_teacher
    spec = SynthesisSpec.resolve(
        {"teacher": "t", "images_per_class": 4, "phases": [{"resolution": 12, "iterations": 60}], **FOR_SHORT_RUNS},
        teacher_spec,
    )
    with DeepInversion(load_teacher(teacher_spec, weights), teacher_spec, spec) as inversion:
        shard = inversion.shard(0)
    assert (shard.predicted == shard.labels).float().mean() >= 0.9
    losses = shard.batches[0].losses
    # Noise has more than 100.
    assert losses["batch_norm"] < 30
    assert shard.batches[0].batch_norm_distance < 30


def test_bfloat16_gives_images_that_the_teacher_knows(digits_teacher: tuple[TeacherSpec, Path]) -> None:
    teacher_spec, weights = digits_teacher
    posted = {
        "teacher": "t",
        "images_per_class": 1,
        "phases": [{"resolution": 12, "iterations": 30}],
        "precision": "bfloat16",
        **FOR_SHORT_RUNS,
    }
    spec = SynthesisSpec.resolve(posted, teacher_spec)
    with DeepInversion(load_teacher(teacher_spec, weights), teacher_spec, spec) as inversion:
        shard = inversion.shard(0)
    assert (shard.predicted == shard.labels).float().mean() >= 0.8


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_teacher_in_another_precision_is_used_in_float32(small_teacher, dtype: torch.dtype) -> None:
    model, teacher_spec = small_teacher()
    other = copy.deepcopy(model).to(dtype)
    spec = resolve(teacher_spec, images_per_class=2)
    with DeepInversion(other, teacher_spec, spec) as inversion:
        made = inversion.shard(0)
    with DeepInversion(copy.deepcopy(other).float(), teacher_spec, spec) as inversion:
        assert equal(inversion.shard(0), made)
    assert next(other.parameters()).dtype == dtype
    assert made.logits.dtype == made.features.dtype == torch.float32


def test_divergence_is_noticed(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    spec = resolve(teacher_spec, learning_rate=1e30, clip=False, images_per_class=2)
    with DeepInversion(model, teacher_spec, spec) as inversion, pytest.raises(Diverged, match=r"lower learning_rate"):
        inversion.shard(0)


def test_what_cannot_work_is_refused_before_any_step(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    spec = resolve(teacher_spec)

    def refused(teacher: nn.Module, spec: SynthesisSpec, **options: Any) -> str:
        with pytest.raises(InvalidInput) as caught:
            DeepInversion(teacher, teacher_spec, spec, **options)
        return caught.value.errors[0].pointer

    assert refused(copy.deepcopy(model).train(), spec) == "/architecture"
    broken = copy.deepcopy(model)
    broken.get_parameter("conv1.0.weight").data[0] = math.nan
    assert refused(broken, spec) == "/weights"
    adaptive = spec.model_copy(update={"weights": spec.weights.model_copy(update={"adaptive": 1.0})})
    assert refused(model, adaptive) == "/adaptive_student"
    student, _ = small_teacher(num_classes=4)
    assert refused(model, adaptive, adaptive_student=student.train()) == "/adaptive_student"
    assert int(student.get_buffer("bn1.num_batches_tracked")) == 3  # looking at it has not trained it
    spoiled = copy.deepcopy(model)
    spoiled.get_parameter("fc.bias").data[1] = math.nan
    assert refused(model, adaptive, adaptive_student=spoiled) == "/adaptive_student"
    with pytest.raises(InvalidInput, match="nothing to optimise"):
        resolve(teacher_spec, weights=dict.fromkeys(SynthesisWeights.model_fields, 0.0))

    vgg, vgg_spec = small_teacher("vgg11_bn", model_args={"mlp_ratio": 0.01})
    tiny = SynthesisSpec.resolve(
        {
            "teacher": "t",
            "phases": [{"resolution": 8, "input_size": 8, "iterations": 1}, {"resolution": 32, "iterations": 1}],
        },
        vgg_spec,
    )
    with pytest.raises(InvalidInput) as caught:
        DeepInversion(vgg, vgg_spec, tiny)
    assert caught.value.errors[0].pointer == "/phases/0/input_size"


def test_after_close_nothing_is_made(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    inversion = DeepInversion(model, teacher_spec, resolve(teacher_spec))
    inversion.close()
    inversion.close()
    with pytest.raises(ValueError, match="closed"):
        inversion.shard(0)


def test_adaptive_student_takes_part(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    student, _ = small_teacher(seed=1)
    spec = resolve(teacher_spec, images_per_class=2)
    spec = spec.model_copy(update={"weights": spec.weights.model_copy(update={"adaptive": 1.0})})
    with DeepInversion(model, teacher_spec, spec, adaptive_student=student) as inversion:
        assert 0 < inversion.shard(0).batches[0].losses["adaptive"] < 1


def test_batch_seeds_are_fixed_and_do_not_repeat() -> None:
    assert batch_seed(0, 0, 0) == 0x54B54709D08C3814 >> 1  # printf 0/0/0 | sha256sum
    seeds = {batch_seed(seed, shard, batch) for seed in range(4) for shard in range(20) for batch in range(20)}
    assert len(seeds) == 4 * 20 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_rate_factor_warms_up_and_falls_as_half_a_cosine(small_teacher) -> None:
    _, teacher_spec = small_teacher()
    phases = [{"resolution": 32, "iterations": 104}, {"resolution": 32, "iterations": 6}]
    spec = resolve(teacher_spec, schedule="cosine", warmup_iterations=4, phases=phases)
    long, short = spec.phases
    assert [rate_factor(spec, long, i) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rate_factor(spec, long, 54) == pytest.approx(0.5)
    assert rate_factor(spec, long, 103) == pytest.approx(0.5 * (1 + math.cos(0.99 * math.pi)))
    assert [rate_factor(spec, short, i) for i in range(4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    constant = spec.model_copy(update={"schedule": "constant"})
    assert [rate_factor(constant, long, i) for i in (0, 3, 50, 103)] == [0.25, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("before", "after"), [(12, 32), (32, 64), (15, 16), (32, 12)])
def test_resize_is_bilinear(before: int, after: int) -> None:
    x = torch.randn(2, 3, before, before, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, size=(after, after), mode="bilinear", antialias=after < before)
    torch.testing.assert_close(resize(x, after), expected)
