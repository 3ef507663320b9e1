"""The sum of the terms: weights, what weighs nothing, and the adaptive term."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dearkd.specs import SynthesisSpec, SynthesisWeights
from dearkd.vision.teachers import features_and_logits
from dearkd_synth.objective.objective import Objective
from dearkd_synth.objective.statistics import MatchedBatchNorm
from dearkd_synth.objective.terms.adaptive import adaptive_loss

ALL = {
    "cross_entropy": 2.0,
    "batch_norm": 0.5,
    "total_variation_l1": 0.1,
    "total_variation_l2": 0.2,
    "l2": 0.3,
    "adaptive": 0.7,
    "boundary": 1.5,
}


class Refusing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("a term of weight 0 was computed")


def objective(small_teacher, weights: dict[str, float], student: nn.Module | None) -> Objective:
    model, teacher_spec = small_teacher()
    model = copy.deepcopy(model).requires_grad_(False)
    spec = SynthesisSpec.resolve({"teacher": "t", "images_per_class": 2}, teacher_spec)
    spec = spec.model_copy(update={"weights": SynthesisWeights(**weights)})
    return Objective(spec, model, student)


def example() -> tuple[Tensor, Tensor]:
    x = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return x, torch.arange(10) % 5


def test_total_is_the_weighted_sum_of_all_terms(small_teacher) -> None:
    student, _ = small_teacher(seed=1)
    whole = objective(small_teacher, ALL, student)
    x, labels = example()
    terms = whole.losses(x, x, labels)
    assert set(terms) == set(ALL)
    assert whole.total(terms).item() == pytest.approx(sum(ALL[name] * term.item() for name, term in terms.items()))

    model, _ = small_teacher()
    assert terms["cross_entropy"].item() == pytest.approx(F.cross_entropy(model(x), labels).item(), rel=1e-5)


@pytest.mark.parametrize("name", list(ALL))
def test_a_term_of_weight_zero_is_absent_and_costs_nothing(small_teacher, name: str) -> None:
    """The gradient without the term is that of the others alone."""
    student, _ = small_teacher(seed=1)
    x, labels = example()
    whole = objective(small_teacher, ALL, student)
    terms = whole.losses(x, x, labels)
    others = whole.total({other: term for other, term in terms.items() if other != name})
    (expected,) = torch.autograd.grad(others, x)

    without = objective(small_teacher, ALL | {name: 0.0}, Refusing() if name == "adaptive" else student)
    terms = without.losses(x, x, labels)
    assert set(terms) == set(ALL) - {name}
    (gradient,) = torch.autograd.grad(without.total(terms), x)
    torch.testing.assert_close(gradient, expected)


class Counting(TorchDispatchMode):
    """Counts the operations that reach the device, those of a backward too."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(loss: Callable[[Tensor, Tensor], Tensor]) -> Counter[str]:
    x, labels = example()
    with Counting() as counting:
        torch.autograd.grad(loss(x, labels), x)
    return counting.counts


def test_all_weights_but_one_zero_cost_the_bare_network_and_that_term(small_teacher) -> None:
    """Operation for operation, forward and backward: nothing is computed that weighs nothing."""
    model, _ = small_teacher()
    bare = copy.deepcopy(model).requires_grad_(False)
    expected = operations(lambda x, labels: F.cross_entropy(features_and_logits(bare, x)[1], labels))
    assert sum(expected.values()) > 50
    expected["aten.detach.default"] += 1  # a view: whoever shows the images asks for the logits that were made anyway
    weights = dict.fromkeys(ALL, 0.0)
    alone = objective(small_teacher, weights | {"cross_entropy": 1.0}, Refusing())
    assert operations(lambda x, labels: alone.losses(x, x, labels)["cross_entropy"]) == expected

    other = objective(small_teacher, weights | {"l2": 1.0}, Refusing())
    x, labels = example()
    with Counting() as counting:
        other.losses(x, x, labels)
    assert not [name for name in counting.counts if "softmax" in name or "nll" in name]


def test_without_statistics_the_layers_keep_none(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    model = copy.deepcopy(model).requires_grad_(False)
    spec = SynthesisSpec.resolve({"teacher": "t", "images_per_class": 2, "weights": {"batch_norm": 0.0}}, teacher_spec)
    x, labels = example()
    Objective(spec, model).losses(x, x, labels)
    layers = [module for module in model.modules() if isinstance(module, MatchedBatchNorm)]
    assert layers
    assert all(layer.statistics == [] for layer in layers)


def test_adaptive_loss_equals_scipys_jensen_shannon_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (3 * torch.randn(6, 10, dtype=torch.float64, generator=generator) for _ in range(2))
    distances = jensenshannon((p / 3).softmax(1).numpy(), (q / 3).softmax(1).numpy(), base=2, axis=1)
    assert adaptive_loss(p, q).item() == pytest.approx(1 - (distances**2).mean())
    assert adaptive_loss(p, p).item() == pytest.approx(1.0)


def test_adaptive_loss_reaches_zero_for_disjoint_answers() -> None:
    p = torch.tensor([[300.0, 0.0, 0.0]])
    q = torch.tensor([[0.0, 300.0, 0.0]])
    assert adaptive_loss(p, q).item() == pytest.approx(0.0, abs=1e-6)


def test_adaptive_loss_has_a_gradient_through_both_even_over_a_thousand_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 1000, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    for gradient in torch.autograd.grad(adaptive_loss(p, q), (p, q)):
        assert (gradient.abs().sum(dim=1) > 0).all()
    small = [tensor.detach()[:, :6].requires_grad_() for tensor in (p, q)]
    assert torch.autograd.gradcheck(adaptive_loss, small)
