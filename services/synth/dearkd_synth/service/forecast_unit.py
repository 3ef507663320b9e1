"""The units that make forecasts along a job with a budget, and the reading of what they found."""

from torch import nn

from dearkd import tracing
from dearkd.specs import SynthesisSpec
from dearkd.specs.forecasting import MOST_IMAGES, forecast_epochs, no_forecast
from dearkd.storage.catalog import Teacher
from dearkd.work.attempt import Attempt
from dearkd_synth.forecast import Forecast, Point, forecast
from dearkd_synth.service.student_unit import MAX_BYTES, stored_images
from dearkd_synth.student.forecast_student import judge_student

UNIT = "forecast-"
"""The beginning of the units' names; the number of rounds that are made before follows."""


def make_forecast(attempt: Attempt, spec: SynthesisSpec, teacher: Teacher, network: nn.Module) -> Forecast:
    """Let a student learn from the first half of the rounds so far, judge it on the second, and fit all judgements.

    Args:
        attempt: at the unit.
        spec: the job's.
        teacher: the teacher's manifest.
        network: the teacher itself, frozen, on the device to compute on.
    """
    number = int(attempt.unit.removeprefix(UNIT))
    cut = spec.cut_in_rounds
    half, end = cut.shards_before(number // 2), cut.shards_before(number)
    images, others = (
        stored_images(attempt, teacher, shards, max_images=MOST_IMAGES, max_bytes=MAX_BYTES // 2)
        for shards in (range(half), range(half, end))
    )
    before = latest_forecast(attempt, spec)
    points = list(before.points) if before else []
    epochs = forecast_epochs(spec.iterations)
    try:
        with tracing.span("forecast", {"dearkd.images": len(images)}):
            agreement = judge_student(network, teacher.spec, spec, images, others, epochs=epochs, on_step=attempt.check)
    except RuntimeError as error:  # torch's, such as one of memory; images do not depend on it
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        attempt.note(f"no forecast of {len(images):,} images: {reason}")
        return Forecast(points=points, images=spec.num_samples, why_not=f"its student could not be trained: {reason}")
    if not points or points[-1].images < len(images):  # else as many as memory takes
        points.append(Point(images=len(images), judged_on=len(others), agreement=agreement))
    found = forecast(points, spec.num_samples)
    attempt.note(
        f"a small student of {len(images):,} images agrees with the teacher on {agreement:.1%} of {len(others):,} "
        f"others; {told(found)}"
    )
    attempt.progress(0, None, {"forecast": shown(found)})
    return found


def latest_forecast(attempt: Attempt, spec: SynthesisSpec) -> Forecast | None:
    """The last forecast of a job that is made; None where there is none so far."""
    for number in reversed(spec.forecasts):
        payload = attempt.ledger.payload(attempt.job.id, f"{UNIT}{number}")
        if payload is not None:
            return Forecast.model_validate_json(payload)
    return None


def final_forecast(attempt: Attempt, spec: SynthesisSpec) -> Forecast | None:
    """The forecast that a job's result carries, with the reason where there is none; None of a job without a budget."""
    if spec.budget is None:
        return None
    found = latest_forecast(attempt, spec)
    if found is not None:
        return found
    why = no_forecast(spec.rounds, spec.cut_in_rounds.samples_before(1), spec.iterations)
    return Forecast(points=[], images=spec.num_samples, why_not=why or "the job ended before the first")


def told(found: Forecast) -> str:
    """A forecast as a clause."""
    if found.agreement is None:
        return f"no forecast: {found.why_not}"
    return (
        f"with all {found.images:,} it is expected to agree on {found.agreement:.1%}, with twice as many on "
        f"{found.agreement + (found.gain_of_doubling or 0):.1%}"
    )


def shown(found: Forecast) -> dict[str, object]:
    """A forecast as clients see it."""
    return found.model_dump(mode="json", exclude={"factor", "exponent"})
