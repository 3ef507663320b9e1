"""Evaluation against scikit-learn's metrics."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from torch import Tensor, nn

from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import InvalidInput
from dearkd.vision.calibration import expected_calibration_error
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.evaluate import evaluation
from dearkd_trainer.evaluate.evaluation import evaluate, normalised_sample

CLASSES, COUNT, MEAN, STD = 7, 50, [0.25], [0.5]


class Table(nn.Module):
    """Answers an image with the row of a table that its grey value names."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.rows = nn.Parameter(torch.randn(COUNT, CLASSES, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        grey = (images[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255
        return self.rows[grey.round().long()]


@pytest.fixture
def dataset(tmp_path: Path) -> ShardDataset:
    """Image n is of grey value n; no image is of the last class."""
    labels = np.random.default_rng(0).integers(0, CLASSES - 1, COUNT)
    grey = [torch.full((1, 8, 8), n, dtype=torch.uint8) for n in range(COUNT)]
    path = tmp_path / "eval.tar"
    write_shard(path, (Sample(f"{n}", encode(grey[n], "png"), "png", int(labels[n]), {}) for n in range(COUNT)))
    return ShardDataset([path], num_classes=CLASSES, in_chans=1)


def test_figures_are_those_of_scikit_learn(dataset: ShardDataset) -> None:
    model = Table().train()
    result = evaluate(model, dataset, image_size=8, mean=MEAN, std=STD, batch_size=16)
    assert model.training
    labels, logits, every = dataset.labels, model.rows.detach().numpy(), list(range(CLASSES))
    assert result.samples == COUNT
    assert result.top1 == pytest.approx(top_k_accuracy_score(labels, logits, k=1, labels=every))
    assert result.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=every))
    probabilities = model.rows.detach().double().softmax(1).numpy()
    assert result.loss == pytest.approx(log_loss(labels, probabilities, labels=every), rel=1e-5)
    confusion = confusion_matrix(labels, logits.argmax(1), labels=every, normalize="true")
    np.testing.assert_allclose(result.confusion, confusion, rtol=1e-6)
    assert result.per_class[:-1] == pytest.approx(list(confusion.diagonal()[:-1]))
    assert result.per_class[-1] is None


def slow_calibration_error(confidences: list[float], correct: list[bool], bins: int) -> float:
    """Guo et al., equation 3: the sum over bins of |B|/n · |acc(B) - conf(B)|."""
    error = 0.0
    for place in range(bins):
        inside = [
            (c, ok)
            for c, ok in zip(confidences, correct, strict=True)
            if place / bins < c <= (place + 1) / bins or (place == 0 and c == 0)
        ]
        if inside:
            accuracy = sum(ok for _, ok in inside) / len(inside)
            confidence = sum(c for c, _ in inside) / len(inside)
            error += len(inside) / len(confidences) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_is_the_papers_sum_over_bins(bins: int) -> None:
    generator = torch.Generator().manual_seed(0)
    confidences = torch.cat([torch.rand(200, generator=generator, dtype=torch.float64), torch.tensor([0.0, 0.25, 1.0])])
    correct = torch.rand(203, generator=generator) < confidences**2
    expected = slow_calibration_error(confidences.tolist(), correct.tolist(), bins)
    assert expected_calibration_error(confidences, correct, bins) == pytest.approx(expected, rel=1e-9)


def test_calibration_error_of_an_evaluation_is_that_of_the_top_class(dataset: ShardDataset) -> None:
    result = evaluate(Table().eval(), dataset, image_size=8, mean=MEAN, std=STD)
    confidences, predictions = Table().rows.detach().softmax(1).max(1)
    correct = (predictions.numpy() == dataset.labels).tolist()
    expected = slow_calibration_error(confidences.tolist(), correct, 15)
    assert result.expected_calibration_error == pytest.approx(expected, rel=1e-5)


def test_a_part_of_a_dataset_can_be_looked_at(dataset: ShardDataset) -> None:
    chosen = np.array([3, 17, 30])
    result = evaluate(Table().eval(), dataset, indices=chosen, image_size=8, mean=MEAN, std=STD)
    predictions = Table().rows[chosen].argmax(1).numpy()
    assert result.samples == 3
    assert result.top1 == pytest.approx((predictions == dataset.labels[chosen]).mean())


def test_a_sample_of_large_images_is_smaller(dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(normalised_sample(dataset, 8, MEAN, STD)) == COUNT
    monkeypatch.setattr(evaluation, "MAX_SAMPLE_BYTES", 3 * 8 * 8 * 4)
    few = normalised_sample(dataset, 8, MEAN, STD)
    grey = (few[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255
    assert grey.tolist() == pytest.approx([0, 24, 49])  # spread over all
    assert len(normalised_sample(dataset, 80, MEAN, STD)) == 1


def test_images_of_another_size_are_resized(dataset: ShardDataset) -> None:
    at_own_size = evaluate(Table().eval(), dataset, image_size=8, mean=MEAN, std=STD)
    assert evaluate(Table().eval(), dataset, image_size=12, mean=MEAN, std=STD, workers=1) == at_own_size


def test_without_the_confusion_matrix_all_else_is_the_same(
    dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"image_size": 8, "mean": MEAN, "std": STD}
    whole = evaluate(Table().eval(), dataset, **arguments)
    assert whole.confusion is not None
    without = replace(whole, confusion=None)
    assert evaluate(Table().eval(), dataset, **arguments, confusion=False) == without
    monkeypatch.setattr(evaluation, "MAX_CONFUSION_CLASSES", CLASSES - 1)
    assert evaluate(Table().eval(), dataset, **arguments) == without


def test_with_fewer_than_five_classes_top5_is_certain(tmp_path: Path) -> None:
    path = tmp_path / "eval.tar"
    write_shard(path, [Sample("0", encode(torch.zeros(1, 8, 8, dtype=torch.uint8), "png"), "png", 1, {})])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    dataset = ShardDataset([path], num_classes=2, in_chans=1)
    assert evaluate(model, dataset, image_size=8, mean=MEAN, std=STD).top5 == 1.0


def test_nothing_to_evaluate_on_is_refused(dataset: ShardDataset) -> None:
    with pytest.raises(InvalidInput, match="no image to evaluate on"):
        evaluate(Table(), dataset, indices=np.empty(0, dtype=np.int64), image_size=8, mean=MEAN, std=STD)
