"""Adam at several resolutions: against images that are the sum of tensors, and one level against Adam; the preset."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dearkd.errors import InvalidInput
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd_synth.engine.pyramid import PyramidAdam, pyramid_noise
from dearkd_synth.engine.resizing import resize
from dearkd_synth.inversion import DeepInversion, Step

SIZE, RATE, BETAS = 16, 0.1, (0.5, 0.9)


def quadratic(x: Tensor, target: Tensor) -> Tensor:
    return ((x - target) ** 2 * torch.linspace(0.1, 3, SIZE)).sum()


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_steps_are_those_of_images_that_are_sums_of_tensors(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    begin, target = torch.randn(2, 2, 3, SIZE, SIZE, generator=generator)
    x = begin.clone().requires_grad_()
    ours = PyramidAdam(x, levels=levels, lr=RATE, betas=BETAS)
    parts = [torch.zeros(2, 3, SIZE // 2**k, SIZE // 2**k, requires_grad=True) for k in range(levels)]
    adam = torch.optim.Adam(parts, lr=RATE, betas=BETAS)
    for step in range(8):
        rate = RATE / (step + 1)
        ours.set_lr(rate)
        adam.param_groups[0]["lr"] = rate
        ours.zero_grad()
        quadratic(x, target).backward()
        ours.step()
        adam.zero_grad()
        summed = begin + torch.stack([resize(part, SIZE) for part in parts]).sum(0)
        quadratic(summed, target).backward()
        adam.step()
        if step == 3:  # as clipping does: what is changed besides belongs to the finest
            with torch.no_grad():
                residue = x.clamp(-1, 1) - x
                x += residue
                parts[0] += residue
    summed = begin + torch.stack([resize(part, SIZE) for part in parts]).sum(0)
    torch.testing.assert_close(x, summed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(x, begin, atol=0.1)


def test_one_level_of_noise_is_noise_and_more_are_coarser() -> None:
    shape = (64, 3, SIZE, SIZE)
    one = pyramid_noise(shape, 1, torch.Generator().manual_seed(3))
    assert torch.equal(one, torch.randn(shape, generator=torch.Generator().manual_seed(3)))
    three = pyramid_noise(shape, 3, torch.Generator().manual_seed(3))

    def coarse(noise: Tensor) -> float:
        return resize(noise, SIZE // 4).var().item()

    # Means over 16 independent pixels and more have little left of them.
    assert 0 < coarse(one) < 1 / 16
    assert coarse(three) > 10 * coarse(one)
    torch.testing.assert_close(three.mean().item(), 0.0, rtol=0, atol=0.05)


def posted(**fields: Any) -> dict[str, Any]:
    return {"teacher": "t", "images_per_class": 2, "phases": [{"resolution": 16, "iterations": 6}], **fields}


def begin_and_end(small_teacher: Any, **fields: Any) -> tuple[float, Tensor, SynthesisSpec]:
    """The deviation after a step of no length, and the images of the whole."""
    model, teacher = small_teacher()
    spreads: list[float] = []

    def look(step: Step) -> None:
        assert step.camera is not None
        images = step.camera.take(range(4), 16).images.float() / 255
        spreads.append(images.std().item())

    still = SynthesisSpec.resolve(posted(clip=False, **fields) | {"learning_rate": 1e-9}, teacher)
    with DeepInversion(model, teacher, still, on_step=look) as inversion:
        inversion.shard(0)
    spec = SynthesisSpec.resolve(posted(**fields), teacher)
    with DeepInversion(model, teacher, spec) as inversion:
        return spreads[0], inversion.shard(0).images, spec


def test_batches_begin_as_faint_as_asked_and_end_elsewhere_with_levels(small_teacher: Any) -> None:
    usual, images, spec = begin_and_end(small_teacher)
    assert (spec.pyramid_levels, spec.init_std) == (1, 1.0)
    faint, of_two, _ = begin_and_end(small_teacher, pyramid_levels=2, init_std=0.05)
    assert faint < usual / 4
    assert not torch.equal(images, of_two)
    again, same, _ = begin_and_end(small_teacher, pyramid_levels=2, init_std=0.05)
    assert again == faint
    assert torch.equal(of_two, same)


@pytest.mark.parametrize(("resolution", "most"), [(16, 4), (7, 2), (4, 2)])
def test_levels_end_at_two_pixels(small_teacher: Any, resolution: int, most: int) -> None:
    _, teacher = small_teacher()
    phases = [{"resolution": resolution, "iterations": 6}]
    assert SynthesisSpec.resolve(posted() | {"phases": phases, "pyramid_levels": most}, teacher).pyramid_levels == most
    with pytest.raises(InvalidInput, match=rf"{most + 1} levels .* of {resolution} pixels .* set at most {most}"):
        SynthesisSpec.resolve(posted() | {"phases": phases, "pyramid_levels": most + 1}, teacher)


@pytest.mark.parametrize("image_size", [8, 28, 32, 64, 224])
@pytest.mark.parametrize("of_pixels", [False, True])
def test_a_draft_costs_a_fifth_or_less_and_keeps_its_share_of_iterations_without_labels(
    small_teacher: Any, image_size: int, of_pixels: bool
) -> None:
    _, teacher = small_teacher()
    teacher = TeacherSpec.model_validate(teacher.model_dump() | {"image_size": image_size})
    posted = {"teacher": "t"} | ({"generator": None} if of_pixels else {})
    whole, draft = (SynthesisSpec.resolve(posted | {"preset": name}, teacher) for name in ("auto", "draft"))
    assert draft.iterations == whole.iterations // (10 if of_pixels and image_size < 64 else 5)
    assert draft.num_samples == whole.num_samples
    assert draft.batch_size == (whole.batch_size if draft.generator is None else 30)
    share = 0.4 if draft.generator is None else 0.1
    assert draft.unlabelled_iterations == round(share * draft.iterations)
    phases = [{"resolution": draft.phases[0].resolution, "iterations": 10}]
    shorter = SynthesisSpec.resolve(posted | {"preset": "draft", "phases": phases}, teacher)
    assert shorter.unlabelled_iterations == (4 if draft.generator is None else 2)
    passes = 10 * draft.num_samples * draft.iterations
    more = SynthesisSpec.resolve(posted | {"preset": "draft", "budget": {"teacher_passes": passes}}, teacher)
    assert more.images_per_class == 10 * draft.images_per_class
