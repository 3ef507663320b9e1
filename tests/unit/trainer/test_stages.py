"""The losses of both stages against loops over their formulas, and against finite differences."""

import math

import pytest
import torch
from torch import Tensor

from dearkd.specs import StageOneSpec, StageOneWeights
from dearkd_trainer.model.student import StudentOutput
from dearkd_trainer.train.losses import (
    classification_loss,
    hard_distillation,
    hidden_loss,
    soft_distillation,
    stage_one_loss,
    stage_two_loss,
)

BATCH, CLASSES = 4, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    exponents = [math.exp(value / temperature) for value in row]
    return [value / sum(exponents) for value in exponents]


def spec(
    kind: str = "soft", classification: float = 0.3, distillation: float = 0.7, hidden: float = 0.2
) -> StageOneSpec:
    weights = StageOneWeights(classification=classification, distillation=distillation, hidden=hidden)
    return StageOneSpec(epochs=1, distillation=kind, temperature=3.0, weights=weights)


def test_classification_is_the_smoothed_cross_entropy() -> None:
    logits, labels = random(BATCH, CLASSES), torch.tensor([0, 3, 1, 1])
    slow = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        wanted = [0.1 / CLASSES + (0.9 if k == label else 0.0) for k in range(CLASSES)]
        slow -= sum(w * math.log(p) for w, p in zip(wanted, softmax(row), strict=True)) / BATCH
    assert classification_loss(logits, labels, smoothing=0.1).item() == pytest.approx(slow)


def test_probabilities_are_not_smoothed_again() -> None:
    logits, target = random(BATCH, CLASSES), random(BATCH, CLASSES, seed=1).softmax(1)
    slow = -sum(
        w * math.log(p)
        for row, wanted in zip(logits.tolist(), target.tolist(), strict=True)
        for w, p in zip(wanted, softmax(row), strict=True)
    )
    assert classification_loss(logits, target, smoothing=0.1).item() == pytest.approx(slow / BATCH)


def test_hard_distillation_follows_the_teachers_decision() -> None:
    logits, teacher = random(BATCH, CLASSES), random(BATCH, CLASSES, seed=1)
    slow = 0.0
    for row, answer in zip(logits.tolist(), teacher.tolist(), strict=True):
        slow -= math.log(softmax(row)[answer.index(max(answer))]) / BATCH
    assert hard_distillation(logits, teacher).item() == pytest.approx(slow)


def test_soft_distillation_is_the_divergence_scaled_by_the_square_of_the_temperature() -> None:
    logits, teacher = random(BATCH, CLASSES), random(BATCH, CLASSES, seed=1)
    slow = 0.0
    for row, answer in zip(logits.tolist(), teacher.tolist(), strict=True):
        for p, q in zip(softmax(answer, 3.0), softmax(row, 3.0), strict=True):
            slow += 9 * p * math.log(p / q) / BATCH
    assert soft_distillation(logits, teacher, 3.0).item() == pytest.approx(slow)


def test_hidden_loss_is_the_sum_of_the_pairs_mean_squares() -> None:
    mine = [random(2, 3, 2, 2), random(2, 1, 4, 4, seed=1)]
    theirs = [random(2, 3, 2, 2, seed=2), random(2, 1, 4, 4, seed=3)]
    slow = 0.0
    for left, right in zip(mine, theirs, strict=True):
        squares = [(x - y) ** 2 for x, y in zip(left.flatten().tolist(), right.flatten().tolist(), strict=True)]
        slow += sum(squares) / len(squares)
    assert hidden_loss(mine, theirs).item() == pytest.approx(slow)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_gradients_of_stage_one_are_right(kind: str) -> None:
    teacher, features = random(BATCH, CLASSES, seed=2), [random(BATCH, 2, 2, 2, seed=3)]
    labels = torch.tensor([0, 3, 1, 1])

    def loss(logits: Tensor, dist_logits: Tensor, aligned: Tensor) -> Tensor:
        output = StudentOutput(logits, dist_logits, [])
        return stage_one_loss(output, labels, teacher, [aligned], features, spec(kind), 0.1)["loss"]

    inputs = (random(BATCH, CLASSES), random(BATCH, CLASSES, seed=1), random(BATCH, 2, 2, 2, seed=4))
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in inputs])


def test_gradient_of_stage_two_is_right() -> None:
    labels = torch.tensor([0, 3, 1, 1])
    logits = random(BATCH, CLASSES).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stage_two_loss(StudentOutput(x, None, []), labels, 0.1)["loss"], logits)


def test_stage_one_is_the_weighted_sum_of_its_terms() -> None:
    output = StudentOutput(random(BATCH, CLASSES), random(BATCH, CLASSES, seed=1), [])
    labels, teacher = torch.tensor([0, 3, 1, 1]), random(BATCH, CLASSES, seed=2)
    aligned, features = [random(BATCH, 2, 2, 2)], [random(BATCH, 2, 2, 2, seed=1)]
    terms = stage_one_loss(output, labels, teacher, aligned, features, spec(), 0.0)
    assert terms["distillation"].item() == pytest.approx(
        soft_distillation(random(BATCH, CLASSES, seed=1), teacher, 3.0).item()
    )
    total = 0.3 * terms["classification"] + 0.7 * terms["distillation"] + 0.2 * terms["hidden"]
    torch.testing.assert_close(terms["loss"], total)


def test_without_a_distillation_token_the_class_token_learns_from_the_teacher() -> None:
    output = StudentOutput(random(BATCH, CLASSES), None, [])
    teacher = random(BATCH, CLASSES, seed=2)
    terms = stage_one_loss(output, torch.zeros(BATCH).long(), teacher, [], [], spec(hidden=0.0))
    torch.testing.assert_close(terms["distillation"], soft_distillation(output.logits, teacher, 3.0))


def test_terms_of_weight_zero_are_not_computed() -> None:
    output = StudentOutput(random(BATCH, CLASSES), random(BATCH, CLASSES, seed=1), [])
    labels = torch.tensor([0, 3, 1, 1])
    terms = stage_one_loss(output, labels, None, [], [], spec(distillation=0.0, hidden=0.0))
    assert set(terms) == {"loss", "classification"}
    terms = stage_one_loss(output, labels, None, [], [], spec("none", hidden=0.0))
    assert set(terms) == {"loss", "classification"}
    terms = stage_one_loss(output, labels, random(BATCH, CLASSES), [], [], spec(classification=0.0, hidden=0.0))
    assert set(terms) == {"loss", "distillation"}


def test_losses_of_bfloat16_outputs_are_float32() -> None:
    output = StudentOutput(random(BATCH, CLASSES).bfloat16(), None, [])
    terms = stage_one_loss(
        output,
        torch.zeros(BATCH).long(),
        random(BATCH, CLASSES).bfloat16(),
        [random(1, 2, 2, 2).bfloat16()],
        [random(1, 2, 2, 2, seed=1).bfloat16()],
        spec(),
    )
    assert {term.dtype for term in terms.values()} == {torch.float32}
