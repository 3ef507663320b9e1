"""The priors against their formulas, written as loops over pixels."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd_synth.objective.terms.l2 import l2
from dearkd_synth.objective.terms.total_variation_l1 import total_variation_l1
from dearkd_synth.objective.terms.total_variation_l2 import total_variation_l2

DIRECTIONS = [(0, 1), (1, 0), (1, 1), (1, -1)]


def images(batch: int = 2, channels: int = 2, height: int = 4, width: int = 5) -> Tensor:
    return torch.randn(batch, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def differences(x: Tensor, down: int, right: int) -> list[float]:
    """Of every pixel and its neighbour in one direction, over all images and channels."""
    batch, channels, height, width = x.shape
    return [
        (x[b, c, i, j] - x[b, c, i + down, j + right]).item()
        for b in range(batch)
        for c in range(channels)
        for i in range(height)
        for j in range(width)
        if i + down < height and 0 <= j + right < width
    ]


def test_total_variation_l1() -> None:
    x = images()
    expected = 0.0
    for down, right in DIRECTIONS:
        pairs = differences(x, down, right)
        expected += sum(abs(d) for d in pairs) / len(pairs)
    assert total_variation_l1(x).item() == pytest.approx(expected, rel=1e-12)


def test_total_variation_l2() -> None:
    x = images()
    expected = sum(math.sqrt(sum(d * d for d in differences(x, *direction))) for direction in DIRECTIONS)
    assert total_variation_l2(x).item() == pytest.approx(expected / math.sqrt(2), rel=1e-12)


def test_total_variation_l2_does_not_grow_with_the_batch() -> None:
    x = images(batch=1)
    torch.testing.assert_close(total_variation_l2(x.repeat(7, 1, 1, 1)), total_variation_l2(x))


def test_l2() -> None:
    x = images()
    expected = sum(math.sqrt(sum(v * v for v in image.flatten().tolist())) for image in x) / len(x)
    assert l2(x).item() == pytest.approx(expected, rel=1e-12)


def test_l2_leaves_an_empty_image_where_it_is() -> None:
    x = images()
    x[1] = 0
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(100 * l2(x), x)
    assert torch.isfinite(gradient).all()
    assert gradient[0].any()
    assert not gradient[1].any()


@pytest.mark.parametrize("prior", [total_variation_l1, total_variation_l2, l2])
def test_gradcheck(prior: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(prior, (images().requires_grad_(),))


def test_a_flat_image_has_no_variation_and_no_gradient() -> None:
    x = torch.full((2, 1, 4, 4), 0.7, requires_grad=True)
    (total_variation_l1(x) + total_variation_l2(x)).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_the_imagenet_preset_pulls_as_hard_as_the_published_weight() -> None:
    """1e-4 times the norms of the whole batch's differences, not divided by anything."""
    teacher = TeacherSpec(
        name="t", architecture="resnet50", num_classes=10, in_chans=3, image_size=224, mean=[0.5] * 3, std=[0.5] * 3
    )
    spec = SynthesisSpec.resolve({"teacher": "t", "preset": "published-imagenet"}, teacher)
    x = torch.randn(spec.batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    norms = (math.sqrt(sum(value**2 for value in differences(x, down, right))) for down, right in DIRECTIONS)
    published = 1e-4 * sum(norms)
    ours = spec.weights.total_variation_l2 * total_variation_l2(x).item()
    assert ours == pytest.approx(published, rel=0.02)
