"""BatchNorm matching against the formula, computed by plain forward hooks."""

import copy
import warnings

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from dearkd.specs import TeacherSpec
from dearkd_synth.objective.statistics import FrozenBatchNorm, MatchedBatchNorm, StatisticsMatching
from tests.support.hook_reference import hook_reference


def batch_norm(channels: int, seed: int = 0, **options: bool) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.BatchNorm2d(channels, **options).double().eval().requires_grad_(False)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5)
    return layer


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
def test_gradcheck_of_all_three_outputs(memory_format: torch.memory_format, affine: bool) -> None:
    matched = MatchedBatchNorm(batch_norm(3, affine=affine))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: FrozenBatchNorm.apply(x, matched), (x,))


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 5), (2, 3, 2, 2, 2)])
def test_gradcheck_of_synchronised_layers_that_stand_in_for_other_dimensions(shape: tuple[int, ...]) -> None:
    """convert_sync_batchnorm replaces BatchNorm1d and 3d by the same class."""
    layer = batch_norm(3)
    flat = (nn.BatchNorm3d if len(shape) == 5 else nn.BatchNorm1d)(3).double()
    flat.load_state_dict(layer.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(flat.eval().requires_grad_(False))
    assert isinstance(converted, nn.SyncBatchNorm)
    matched = MatchedBatchNorm(converted)
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: FrozenBatchNorm.apply(x, matched), (x,))
    torch.testing.assert_close(matched(x), flat(x))


def test_families_match_their_hook_reference(family_teacher: tuple[nn.Module, TeacherSpec]) -> None:
    model = copy.deepcopy(family_teacher[0]).double().requires_grad_(False)
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    logits, loss = hook_reference(model, x, [10.0] + [1.0] * (layers - 1))
    (gradient,) = torch.autograd.grad(loss + logits.square().sum(), x)

    matching = StatisticsMatching(model, first_weight=10.0)
    assert len(matching.layers) == layers
    matching.start()
    matched_logits = model(x)
    matched_loss = matching.loss()
    (matched_gradient,) = torch.autograd.grad(matched_loss + matched_logits.square().sum(), x)

    torch.testing.assert_close(matched_logits, logits)
    torch.testing.assert_close(matched_loss, loss)
    torch.testing.assert_close(matched_gradient, gradient)


def test_the_activation_of_a_batch_norm_act_layer_is_kept() -> None:
    layer = BatchNormAct2d(4, act_layer=nn.SiLU, inplace=False).eval()
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(MatchedBatchNorm(layer)(x), layer(x))
    assert not torch.allclose(MatchedBatchNorm(layer)(x), nn.functional.batch_norm(x, torch.zeros(4), torch.ones(4)))


def test_synchronised_batch_norm_is_matched_too(small_teacher) -> None:
    model, _ = small_teacher("resnet10t")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).requires_grad_(False)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    count = sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    logits, loss = hook_reference(model, x, [1.0] * count)
    matching = StatisticsMatching(model)
    matching.start()
    torch.testing.assert_close(model(x), logits)
    torch.testing.assert_close(matching.loss(), loss)
    assert len(matching.layers) == count > 0


def test_a_layer_that_runs_twice_counts_twice() -> None:
    shared = batch_norm(3)
    model = nn.Sequential(shared, nn.Conv2d(3, 3, 1).double(), shared).eval().requires_grad_(False)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    between = model[1](shared(x))
    expected = sum(
        (values.mean((0, 2, 3)) - shared.running_mean).norm()
        + (values.var((0, 2, 3), correction=0) - shared.running_var).norm()
        for values in (x, between)
    )
    matching = StatisticsMatching(model)
    matching.start()
    model(x)
    torch.testing.assert_close(matching.loss(), expected)


def test_bfloat16_input_gives_float32_statistics() -> None:
    matched = MatchedBatchNorm(batch_norm(3).float())
    x = (100 + torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(6))).bfloat16()
    matched(x)
    ((mean, variance),) = matched.statistics
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)).float())
    torch.testing.assert_close(variance, x.double().var((0, 2, 3), correction=0).float(), rtol=1e-4, atol=0)


def test_without_matching_it_is_the_plain_layer_and_keeps_nothing() -> None:
    layer = batch_norm(3)
    matched = MatchedBatchNorm(layer)
    matched.matching = False
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(matched(x), layer(x))
    assert matched.statistics == []


def test_an_input_that_is_not_finite_leaves_no_trace_in_the_layer() -> None:
    layer = batch_norm(3)
    matched = MatchedBatchNorm(layer)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    before = matched(x)
    matched(torch.full_like(x, torch.inf))
    matched.statistics.clear()
    torch.testing.assert_close(matched(x), before)
    assert torch.isfinite(torch.stack(matched.statistics[0])).all()


def test_statistics_that_match_exactly_have_a_gradient_of_zero() -> None:
    """The norm has a kink there; its gradient must be 0 and not NaN."""
    layer = batch_norm(2)
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    layer.running_mean.copy_(x.mean((0, 2, 3)))
    layer.running_var.copy_(x.var((0, 2, 3), correction=0))
    matching = StatisticsMatching(nn.Sequential(layer))
    (matched,) = matching.layers
    x.requires_grad_()
    mean, variance = torch.batch_norm_update_stats(x.detach(), None, None, 0.0)
    matched.running_mean.copy_(mean)
    matched.running_var.copy_(variance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matched(x)
        matching.loss().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x.grad))
