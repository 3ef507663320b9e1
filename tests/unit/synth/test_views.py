"""The crop curriculum against torchvision, and what is drawn where it is off."""

import math

import pytest
import torch
from torchvision.transforms.functional import resized_crop

from dearkd.specs import SynthesisSpec
from dearkd_synth.views import Views, crop_box, least_scale

STEPS = 40


def spec_of(small_teacher, **posted: object) -> SynthesisSpec:
    phases = [{"resolution": 16, "iterations": STEPS // 2}, {"resolution": 32, "iterations": STEPS // 2}]
    return SynthesisSpec.resolve(
        {"teacher": "t", "phases": phases, "jitter": 0, "flip": 0.0} | posted, small_teacher()[1]
    )


def draws(count: int) -> list[list[float]]:
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("least", [1.0, 0.5, 0.08])
def test_crops_have_uniform_areas_and_torchvisions_ratios(least: float) -> None:
    """In torchvision's ranges; its mean area is smaller, since it rejects what does not fit."""
    boxes = [crop_box(224, least, four) for four in draws(2000)]
    assert all(0 <= top <= 224 - height and 0 <= left <= 224 - width for top, left, height, width in boxes)
    areas = torch.tensor([height * width / 224**2 for *_, height, width in boxes])
    ratios = torch.tensor([width / height for *_, height, width in boxes])
    assert areas.min() >= least - 0.01
    assert 0.74 <= ratios.min() <= ratios.max() <= 1.35
    assert abs(areas.mean() - (1 + least) / 2) < 0.02
    if least < 1:
        assert (ratios.log().abs() > 0.2).any()
        assert len({top for top, *_ in boxes}) > 50
    else:
        assert set(boxes) == {(0, 0, 224, 224)}


def test_the_smallest_crop_falls_from_all_to_the_end() -> None:
    scales = [least_scale(0.08, step, 100) for step in range(100)]
    assert scales[0] == 1
    assert scales[-1] == pytest.approx(0.08)
    assert scales == sorted(scales, reverse=True)
    assert least_scale(0.08, 50, 101) == pytest.approx(0.54)
    assert least_scale(0.08, 0, 1) == 1


def test_a_view_is_torchvisions_crop_of_the_upsampled_images(small_teacher) -> None:
    spec = spec_of(small_teacher, crop_min_scale=0.08)
    views = Views(spec, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    torch.rand(STEPS, 2, generator=generator)
    torch.rand(STEPS, generator=generator)
    drawn = torch.rand(STEPS, 4, generator=generator).tolist()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    cropped = 0
    for step in range(STEPS // 2, STEPS):
        top, left, height, width = crop_box(32, least_scale(0.08, step, STEPS), drawn[step])
        shown = views.show(x, spec.phases[1], step)
        torch.testing.assert_close(shown, resized_crop(x, top, left, height, width, [32, 32]), rtol=0, atol=1e-5)
        cropped += (height, width) != (32, 32)
        (gradient,) = torch.autograd.grad(shown.sum(), x)
        outside = gradient.clone()
        outside[:, :, top : top + height, left : left + width] = 0
        assert (outside == 0).all()
    assert cropped > 10


def test_without_crops_the_draws_are_those_of_before(small_teacher) -> None:
    """A spec that leaves crops off keeps its bytes: nothing more is drawn from the batch's generator."""
    generator = torch.Generator().manual_seed(0)
    Views(spec_of(small_teacher), generator)
    expected = torch.Generator().manual_seed(0)
    torch.rand(STEPS, 2, generator=expected)
    torch.rand(STEPS, generator=expected)
    assert torch.equal(torch.rand(4, generator=generator), torch.rand(4, generator=expected))


def test_the_first_view_shows_everything_and_the_last_little(small_teacher) -> None:
    spec = spec_of(small_teacher, crop_min_scale=0.08)
    views = Views(spec, torch.Generator().manual_seed(3))
    # A map of places: a crop shows a narrower range of them.
    places = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    first = views.show(places[..., ::2, ::2], spec.phases[0], 0)
    assert first.min() == pytest.approx(0, abs=1e-6)
    widths = [
        float(views.show(places, spec.phases[1], step).max() - views.show(places, spec.phases[1], step).min())
        for step in range(30, 40)
    ]
    assert min(widths) < 0.6
    assert math.isclose(widths[0], 1) or widths[0] < 1
