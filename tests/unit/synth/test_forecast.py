"""Forecasts: the fit against numpy's, the students' cost counted step by step, what cannot be foretold."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dearkd.specs import SynthesisSpec
from dearkd.specs.forecasting import LEAST_EPOCHS, MOST_IMAGES, forecast_epochs, forecast_rounds, no_forecast
from dearkd_synth.forecast import Point, forecast
from dearkd_synth.student.forecast_student import judge_student


def points(factor: float, exponent: float, images: list[int], judged_on: int = 10**6) -> list[Point]:
    return [Point(images=n, judged_on=judged_on, agreement=1 - factor * n**-exponent) for n in images]


@given(factor=st.floats(0.2, 2.0), exponent=st.floats(0.1, 0.8), first=st.integers(20, 500), count=st.integers(3, 7))
def test_a_law_is_found_again(factor: float, exponent: float, first: int, count: int) -> None:
    images = [first * 2**power for power in range(count)]
    law = points(min(factor, 0.9 * first**exponent), exponent, images)
    found = forecast(law, 10**5)
    expected = (1 - law[0].agreement) * (10**5 / first) ** -exponent
    assert found.why_not is None
    assert found.agreement == pytest.approx(1 - expected)
    assert found.gain_of_doubling == pytest.approx(expected - expected * 2**-exponent)
    assert found.gain_behind(10**5) == 0
    assert found.gain_behind(first) == pytest.approx(1 - law[0].agreement - expected)
    assert found.points == law


@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(100, 5000)), min_size=3, max_size=8),
)
def test_the_fit_is_numpys_weighted_by_the_counts(judged: list[tuple[int, int]]) -> None:
    """Each point weighs the inverse of the variance of its logarithm, by the binomial distribution."""
    given_points = [
        Point(images=100 * 2**i, judged_on=on, agreement=right / 100) for i, (right, on) in enumerate(judged)
    ]
    errors = np.array([1 - p.agreement for p in given_points])
    deviations = np.sqrt((1 - errors) / (errors * np.array([on for _, on in judged])))
    xs = np.log([p.images for p in given_points])
    (slope, start), covariance = np.polyfit(xs, np.log(errors), 1, w=1 / deviations, cov="unscaled")
    found = forecast(given_points, 10**6)
    if abs(-slope - 2 * math.sqrt(covariance[0, 0])) < 1e-9:
        return
    if -slope > 2 * math.sqrt(covariance[0, 0]):
        assert found.agreement == pytest.approx(1 - min(1.0, math.exp(start) * (10**6) ** slope))
    else:
        assert found.agreement is None
        assert "does not fall by more than chance" in str(found.why_not)


@pytest.mark.parametrize(
    ("agreements", "why"),
    [
        ([], "it takes 3 judgements, and so far there are 0"),
        ([0.5, 0.6], "it takes 3 judgements, and so far there are 2"),
        ([0.5, 0.9, 1.0], "no error is left"),
        ([0.5, 0.5, 0.5], "does not fall by more than chance"),
        ([0.7, 0.6, 0.5], "does not fall by more than chance"),
        ([0.5, 0.52, 0.54], "does not fall by more than chance"),
        ([0.0, 0.0, 0.0], "does not fall by more than chance"),
    ],
)
def test_what_cannot_be_foretold_says_why(agreements: list[float], why: str) -> None:
    judged = [Point(images=100 * 2**i, judged_on=100, agreement=value) for i, value in enumerate(agreements)]
    found = forecast(judged, 1000)
    assert (found.agreement, found.gain_of_doubling, found.gain_behind(100)) == (None, None, None)
    assert why in str(found.why_not)
    assert found.points == judged


@given(rounds=st.integers(1, 3000), samples=st.integers(1, 20_000), iterations=st.integers(1, 4000))
def test_forecasts_take_a_twentieth_of_the_passes_at_the_most(rounds: int, samples: int, iterations: int) -> None:
    """At any moment, of the images that are made by then. A forward pass is a third, and each of the student's."""
    spent = 0.0
    made = forecast_rounds(rounds, samples, iterations)
    assert (no_forecast(rounds, samples, iterations) is None) == bool(made)
    for number in made:
        assert number <= rounds
        learnt, judged = number // 2 * samples, (number - number // 2) * samples
        assert learnt <= MOST_IMAGES
        assert forecast_epochs(iterations) >= LEAST_EPOCHS
        spent += (learnt + judged + forecast_epochs(iterations) * learnt + judged) / 3
        assert spent <= 0.05 * number * samples * iterations
    assert made == [2**power for power in range(1, len(made) + 1)]


def test_a_student_is_judged_by_what_the_teacher_says_of_images_that_it_has_not_seen(small_teacher: Any) -> None:
    """The teacher tells stripes that lie from stripes that stand; of noise nobody learns anything."""
    _, task = small_teacher(num_classes=2)
    seen: list[int] = []

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            lying, standing = x.mean(dim=3).var(dim=(1, 2)), x.mean(dim=2).var(dim=(1, 2))
            return self.scale * 40 * torch.stack([lying, standing], dim=1)

    spec = SynthesisSpec.resolve({"teacher": "t", "batch_size": 20, "seed": 3}, task)

    def stripes(count: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        lines = torch.randint(0, 256, (count, 3, 32, 1), generator=generator).expand(-1, -1, -1, 32)
        turned = torch.arange(count) % 2 == 0
        return torch.where(turned[:, None, None, None], lines.transpose(2, 3), lines).to(torch.uint8).contiguous()

    steps: list[int] = []
    agreement = judge_student(
        Teacher(), task, spec, stripes(64, 0), stripes(100, 1), epochs=30, on_step=lambda: steps.append(1)
    )
    assert agreement > 0.9
    assert sum(seen) == 64 + 100, "the teacher sees each image once"
    assert len(steps) == 30 * 4 + 4 + 2 * 5
    again = judge_student(Teacher(), task, spec, stripes(64, 0), stripes(100, 1), epochs=30)
    assert again == agreement, "a function of its arguments"
    poor = judge_student(Teacher(), task, spec, stripes(4, 0), stripes(100, 1), epochs=1)
    assert poor < agreement
