"""Forecasts of what more images bring, from judgements of students that learnt from few: arithmetic alone.

The error of a student falls with the number of images n about as a·n^(−b): such power laws are what learning curves are
found to be (Hestness et al., arXiv 1712.00409) [P]. No floor is fitted: few points do not bear a third number [R].
"""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from dearkd.specs.forecasting import LEAST_POINTS

NOISE = 2.0
"""Standard errors by which the exponent must lie above 0, or there is no trend [R]."""


class Point(BaseModel):
    """A judgement: of a student that learnt from so many images, on others."""

    model_config = ConfigDict(frozen=True)

    images: int
    judged_on: int
    agreement: float
    """The fraction of those for which it predicts the teacher's class."""


class Forecast(BaseModel):
    """Agreement with the teacher that is expected of the job's small student; accuracies are fractions in [0, 1]."""

    model_config = ConfigDict(frozen=True)

    points: list[Point]
    """The judgements that it rests on."""
    images: int
    """The planned images of the job, for which it is."""
    agreement: float | None = None
    """Expected of a student that learns from all of these; None where nothing can be expected."""
    gain_of_doubling: float | None = None
    """The rise of that if twice as many were made."""
    factor: float | None = None
    """a of the error a·n^(−b)."""
    exponent: float | None = None
    """b."""
    why_not: str | None = None
    """The reason why nothing can be expected, where that is so."""

    def error(self, images: int) -> float:
        """The error expected with so many images, at most 1. Only where there is an expectation."""
        assert self.factor is not None
        assert self.exponent is not None
        return min(1.0, self.factor * math.pow(images, -self.exponent))

    def gain_behind(self, images: int) -> float | None:
        """The rise of the agreement that the planned images behind so many bring; None without an expectation."""
        return None if self.factor is None else max(0.0, self.error(images) - self.error(self.images))


def forecast(points: Sequence[Point], images: int) -> Forecast:
    """Fit the law to the logarithms of error and images, each point weighed by what its number of images tells.

    Args:
        points: in the order of their images, each number once.
        images: planned in all.
    """
    none = Forecast(points=list(points), images=images)
    if len(points) < LEAST_POINTS:
        return none.model_copy(
            update={"why_not": f"it takes {LEAST_POINTS} judgements, and so far there are {len(points)}"}
        )
    if any(point.agreement >= 1 for point in points):
        return none.model_copy(
            update={"why_not": "a student agreed with the teacher on every image: no error is left that could fall"}
        )
    errors = [1 - point.agreement for point in points]
    # Of an error e on m images the variance of the logarithm is (1 − e)/(e·m); of an error of 1 not less than with one
    # image right.
    weights = [e * p.judged_on / max(1 - e, 1 / p.judged_on) for e, p in zip(errors, points, strict=True)]
    xs, ys = [math.log(point.images) for point in points], [math.log(e) for e in errors]
    total = math.fsum(weights)
    x0, y0 = (math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total for values in (xs, ys))
    spread = math.fsum(w * (x - x0) ** 2 for w, x in zip(weights, xs, strict=True))
    exponent = -math.fsum(w * (x - x0) * (y - y0) for w, x, y in zip(weights, xs, ys, strict=True)) / spread
    if exponent <= NOISE / math.sqrt(spread):
        return none.model_copy(
            update={"why_not": "the student's error does not fall by more than chance with the number of images"}
        )
    fitted = none.model_copy(update={"factor": math.exp(y0 + exponent * x0), "exponent": exponent})
    return fitted.model_copy(
        update={
            "agreement": 1 - fitted.error(images),
            "gain_of_doubling": fitted.error(images) - fitted.error(2 * images),
        }
    )
