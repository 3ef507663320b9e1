"""L_bpid against its formula, and what it must leave alone."""

import math

import pytest
import torch
from torch import Tensor

from dearkd.specs import SynthesisSpec
from dearkd_synth.objective.term import FinishedBatch, TermInputs
from dearkd_synth.objective.terms.boundary import Boundary, FeatureBank, boundary_loss, logit_margin

TAU, M = 1.0, 0.3


def cosine(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def reference(
    features: Tensor, logits: Tensor, labels: Tensor, earlier: list[tuple[list[float], int]], tau: float, m: float
) -> float:
    """L_bpid sample by sample, as the docstring's formula reads."""
    f, z, y = features.tolist(), logits.tolist(), labels.tolist()
    total = 0.0
    for i in range(len(f)):
        positives = [f[j] for j in range(len(f)) if j != i and y[j] == y[i]]
        positives += [feature for feature, label in earlier if label == y[i]]
        lead = z[i][y[i]] - max(value for k, value in enumerate(z[i]) if k != y[i])
        if positives and lead > tau:
            total += max(0.0, max(cosine(f[i], p) for p in positives) - m)
    return total / len(f)


def batch(size: int = 12, classes: int = 4, dims: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(size, dims, dtype=torch.float64, generator=generator)
    logits = 2 * torch.randn(size, classes, dtype=torch.float64, generator=generator)
    labels = torch.randint(classes, (size,), generator=generator)
    return features, logits, labels


def loss(
    features: Tensor, logits: Tensor, labels: Tensor, earlier: tuple[Tensor, Tensor] | None = None, m: float = M
) -> Tensor:
    return boundary_loss(features, logits, labels, earlier, boundary_margin=TAU, similarity_margin=m)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("m", [-1.0, 0.3, 0.9])
def test_equals_the_formula_without_and_with_a_bank(seed: int, m: float) -> None:
    features, logits, labels = batch(seed=seed)
    assert loss(features, logits, labels, m=m).item() == pytest.approx(reference(features, logits, labels, [], TAU, m))

    kept_features, _, kept_labels = batch(size=9, seed=seed + 100)
    bank = FeatureBank()
    bank.add(kept_features[:4], kept_labels[:4])
    bank.add(kept_features[4:], kept_labels[4:])
    kept = list(zip(kept_features.tolist(), kept_labels.tolist(), strict=True))
    assert loss(features, logits, labels, bank.of(labels), m=m).item() == pytest.approx(
        reference(features, logits, labels, kept, TAU, m), rel=1e-6
    )


def test_gradcheck_against_frozen_positives() -> None:
    """One sample a class, so that every positive comes from the bank and stands still under the check's steps."""
    features, _, _ = batch(size=4)
    labels = torch.arange(4)
    logits = 5 * torch.eye(4, dtype=torch.float64)
    kept, _, kept_labels = batch(size=8, seed=1)
    earlier = (torch.nn.functional.normalize(kept, dim=1), kept_labels)
    assert torch.autograd.gradcheck(lambda f: loss(f, logits, labels, earlier), (features.requires_grad_(),))


def test_positives_get_no_gradient() -> None:
    """Two samples of a class, one of them near the boundary: it is the other's positive, and is left where it is."""
    features = torch.tensor([[1.0, 0.2], [0.9, 0.4]], requires_grad=True)
    logits = torch.tensor([[5.0, 0.0], [0.5, 0.0]])
    loss(features, logits, torch.tensor([0, 0])).backward()
    assert features.grad is not None
    assert torch.equal(features.grad[1], torch.zeros(2))
    assert features.grad[0].abs().sum() > 0


def test_gradient_is_exactly_zero_near_the_boundary_and_without_positives() -> None:
    features, _, _ = batch(size=6)
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    lead = torch.tensor([3.0, TAU, -2.0, 3.0, 3.0, 3.0], dtype=torch.float64)  # of the label's logit over all others
    logits = lead[:, None] * torch.nn.functional.one_hot(labels, 4)
    features.requires_grad_()
    loss(features, logits, labels).backward()
    assert features.grad is not None
    pushed = features.grad.abs().sum(dim=1) > 0
    # 1: at τ, not over it. 2: misclassified. 3: alone in its class.
    assert pushed.tolist() == [True, False, False, False, True, True]


def test_a_near_duplicate_stays_a_positive() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    logits = torch.tensor([[5.0, 0.0]] * 3)
    assert loss(features, logits, torch.tensor([0, 0, 0])).item() == pytest.approx(2 * (1 - M) / 3)


def test_the_term_looks_at_the_finished_batches_of_its_shard_until_the_next(small_teacher) -> None:
    features, logits, labels = batch()
    kept, _, kept_labels = batch(size=9, seed=1)
    spec = SynthesisSpec.resolve({"teacher": "t", "boundary_margin": TAU, "similarity_margin": M}, small_teacher()[1])
    x = torch.zeros(0)
    inputs = TermInputs(
        x=x, view=x, features=features, logits=logits, student_logits=logits, labels=labels, matching=None
    )  # the networks are not its business
    term = Boundary(spec)
    losses = []
    for _ in range(2):
        term.begin_shard()
        for earlier in ([], list(zip(kept.tolist(), kept_labels.tolist(), strict=True))):
            if earlier:
                term.keep(FinishedBatch(labels=kept_labels, features=kept, statistics=[]))
            term.begin_phase(0, labels)
            losses.append(term.loss(inputs).item())
            assert losses[-1] == pytest.approx(reference(features, logits, labels, earlier, TAU, M), rel=1e-6)
    assert losses[:2] == losses[2:]
    assert losses[0] != losses[1]


def test_the_bank_holds_its_classes_apart_and_no_graph() -> None:
    bank = FeatureBank()
    assert bank.of(torch.tensor([0])) is None
    bank.add(torch.tensor([[3.0, 4.0], [0.0, 2.0]], requires_grad=True), torch.tensor([0, 1]))
    kept = bank.of(torch.tensor([0, 0, 5]))
    assert kept is not None
    torch.testing.assert_close(kept[0], torch.tensor([[0.6, 0.8]]))
    assert kept[1].tolist() == [0]
    assert not kept[0].requires_grad


def test_logit_margin() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [7.0, 7.0, 0.0]])
    assert logit_margin(logits, torch.tensor([1, 0, 0])).tolist() == [2.0, -3.0, 0.0]
