"""Distances of a batch's statistics that mean the same for every network, against other ways to compute them."""

import copy

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from dearkd_synth.objective.statistics import NEAREST, ROOTED, SCALE_FREE, Earlier, StatisticsMatching


def moments() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance of a batch, and running ones, of seven channels of very different scales."""
    generator = torch.Generator().manual_seed(0)
    scale = 10.0 ** torch.arange(-3, 4, dtype=torch.float64)
    first, second, third, fourth = torch.rand(4, 7, dtype=torch.float64, generator=generator)
    return first * scale, (0.5 + second) * scale**2, third * scale, (0.5 + fourth) * scale**2


def test_gaussian_is_the_divergence_of_two_normal_distributions() -> None:
    mean, variance, running_mean, running_var = moments()
    batch, running = Normal(mean, variance.sqrt()), Normal(running_mean, running_var.sqrt())
    torch.testing.assert_close(SCALE_FREE["gaussian"](*moments()), kl_divergence(batch, running))
    both = (kl_divergence(batch, running) + kl_divergence(running, batch)) / 2
    torch.testing.assert_close(SCALE_FREE["symmetric"](*moments()), both)


def test_wasserstein_is_the_mean_square_distance_of_quantiles() -> None:
    mean, variance, running_mean, running_var = (values.numpy() for values in moments())
    levels = (torch.arange(200_000).double().numpy() + 0.5) / 200_000
    for channel, found in enumerate(SCALE_FREE["wasserstein"](*moments()).tolist()):
        ours = norm.ppf(levels, mean[channel], variance[channel] ** 0.5)
        theirs = norm.ppf(levels, running_mean[channel], running_var[channel] ** 0.5)
        assert found == pytest.approx(((ours - theirs) ** 2).mean() / running_var[channel], rel=1e-3)


def test_normalised_l2_is_the_published_one_where_the_running_deviation_is_1() -> None:
    mean, variance, *_ = moments()
    zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
    expected = mean.square() + (variance - 1).square()
    torch.testing.assert_close(SCALE_FREE["normalised_l2"](mean, variance, zeros, ones), expected)


@pytest.mark.parametrize("distance", SCALE_FREE)
def test_each_is_0_where_statistics_match_and_has_the_gradient_of_its_differences(distance: str) -> None:
    mean, variance, running_mean, running_var = moments()
    assert SCALE_FREE[distance](running_mean, running_var, running_mean, running_var).abs().max() < 1e-12
    # Of channels of like scale: the check's step is one number.
    inputs = [values[3:4].requires_grad_() for values in (mean, variance)]
    assert torch.autograd.gradcheck(
        lambda m, v: SCALE_FREE[distance](m, v, running_mean[3:4], running_var[3:4]), inputs
    )


def network(*, scale: float = 1.0, copies: int = 1) -> nn.Module:
    """Two layers; channels are there `copies` times, and the activations have a scale."""
    generator = torch.Generator().manual_seed(1)
    convolution = nn.Conv2d(3, 4 * copies, 3, padding=1, bias=False)
    first, second = nn.BatchNorm2d(3), nn.BatchNorm2d(4 * copies)
    with torch.no_grad():
        weight = torch.randn(4, 3, 3, 3, generator=generator)
        convolution.weight.copy_(scale * weight.repeat(copies, 1, 1, 1))
        second.running_mean.copy_(scale * torch.randn(4, generator=generator).repeat(copies))
        second.running_var.copy_(scale**2 * (0.5 + torch.rand(4, generator=generator)).repeat(copies))
    return nn.Sequential(first, convolution, second).double().eval().requires_grad_(False)


def distance_of(model: nn.Module, distance: str, x: Tensor, **options: object) -> Tensor:
    matching = StatisticsMatching(model, distance=distance, **options)
    matching.start()
    model(x)
    return matching.loss()


@pytest.mark.parametrize("distance", SCALE_FREE)
def test_neither_scale_nor_width_changes_it(distance: str) -> None:
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = distance_of(network(), distance, x)
    torch.testing.assert_close(distance_of(network(scale=1000.0), distance, x), found, rtol=1e-4, atol=0)
    torch.testing.assert_close(distance_of(network(copies=5), distance, x), found)
    # The mean over layers of the means over channels, by hand.
    model = network()
    parts = []
    for layer, values in ((model[0], x), (model[2], model[1](model[0](x)))):
        running_mean, running_var = layer.running_mean, layer.running_var + layer.eps
        variance = values.var((0, 2, 3), correction=0) + layer.eps
        parts.append(SCALE_FREE[distance](values.mean((0, 2, 3)), variance, running_mean, running_var).mean())
    if distance in ROOTED:
        parts = [(part + NEAREST).sqrt() for part in parts]
    torch.testing.assert_close(found, (parts[0] + parts[1]) / 2)
    torch.testing.assert_close(distance_of(network(), distance, x, first_weight=3.0), (3 * parts[0] + parts[1]) / 4)


@pytest.mark.parametrize("distance", SCALE_FREE)
def test_each_resolution_counts_alike_unless_layers_have_weights(distance: str) -> None:
    """One layer of 8 px, three of 4 px, of which one is called twice, and one of a single pixel."""
    twice = nn.BatchNorm2d(2)
    model = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.AvgPool2d(2),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        twice,
        nn.Tanh(),
        nn.BatchNorm2d(2),
        nn.ELU(),
        twice,
        nn.AdaptiveAvgPool2d(1),
        nn.BatchNorm2d(2),
    )
    model = model.double().eval().requires_grad_(False)
    x = 2 + 3 * torch.randn(16, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    parts: dict[int, list[Tensor]] = {}
    values = x
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0) + layer.eps
            part = SCALE_FREE[distance](mean, variance, layer.running_mean, layer.running_var + layer.eps).mean()
            parts.setdefault(values.shape[-1], []).append((part + NEAREST).sqrt() if distance in ROOTED else part)
        values = layer(values)
    assert {side: len(found) for side, found in parts.items()} == {8: 1, 4: 4, 1: 1}
    by_resolution = torch.stack([torch.stack(found).mean() for found in parts.values()]).mean()
    by_layer = torch.stack([part for found in parts.values() for part in found]).mean()
    torch.testing.assert_close(distance_of(copy.deepcopy(model), distance, x), by_resolution)
    torch.testing.assert_close(distance_of(model, distance, x, layer_weights=[1.0] * 5), by_layer)


def test_another_size_of_the_same_images_is_weighed_anew() -> None:
    """Maps of 2 px and 1 px are two resolutions, those of the same images at half the size one."""
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.AvgPool2d(2, ceil_mode=True), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)
    )
    matching = StatisticsMatching(model.double().eval().requires_grad_(False), distance="gaussian")
    x = torch.randn(16, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for images, shares in ((x, [1 / 2, 1 / 4, 1 / 4]), (x[:, :, :1, :1], [1 / 3] * 3), (x, [1 / 2, 1 / 4, 1 / 4])):
        matching.start()
        model(images)
        parts = [
            SCALE_FREE["gaussian"](mean, variance + 1e-5, torch.zeros(3), torch.ones(3) + 1e-5).mean()
            for mean, variance in matching.collected()
        ]
        expected = sum(share * part for share, part in zip(shares, parts, strict=True))
        torch.testing.assert_close(matching.loss(), expected)


def test_the_published_distance_grows_with_the_scale() -> None:
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert distance_of(network(scale=1000.0), "l2", x) > 1000 * distance_of(network(), "l2", x)


@pytest.mark.parametrize("distance", [*SCALE_FREE, "l2"])
def test_beside_earlier_images_it_is_that_of_all_of_them_together(distance: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x, before = (torch.randn(n, 3, 6, 6, dtype=torch.float64, generator=generator) for n in (4, 12))
    together = distance_of(network(), distance, torch.cat([before, x]))
    model = network()
    matching = StatisticsMatching(model, distance=distance)
    matching.start()
    model(before)
    earlier = matching.collected()
    matching.start()
    model(x)
    torch.testing.assert_close(matching.loss(Earlier(earlier, 0.25)), together / 0.25)


@pytest.mark.parametrize("distance", [*ROOTED, "l2"])
def test_what_is_rooted_pulls_as_much_near_the_statistics_as_far_from_them(distance: str) -> None:
    """Images whose distance is a hundredth have the same gradient; of what is not rooted it is a hundredth too."""

    def pull(off: float, of: str) -> float:
        layer = nn.BatchNorm2d(3).double().eval().requires_grad_(False)
        x = torch.randn(64, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)
        x = (x + off).requires_grad_()
        (gradient,) = torch.autograd.grad(distance_of(nn.Sequential(layer), of, x), x)
        return gradient.norm().item()

    assert pull(0.01, distance) == pytest.approx(pull(0.1, distance), rel=0.05)
    assert pull(0.01, "gaussian") == pytest.approx(pull(0.1, "gaussian") / 10, rel=0.05)


def test_a_channel_that_never_varied_gives_a_finite_distance_and_gradient() -> None:
    model = network()
    model[2].running_var[0] = 0.0
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    for distance in SCALE_FREE:
        loss = distance_of(model, distance, x)
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        model = network()
        model[2].running_var[0] = 0.0
