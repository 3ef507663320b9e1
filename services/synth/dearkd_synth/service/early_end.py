"""The early end of a job with a budget: no round is begun that would not end in time, or that does not pay."""

from collections.abc import Callable, Iterable
from typing import Literal

from dearkd.data.manifests import datasets
from dearkd.data.shard_files import Shard, shard_name
from dearkd.errors import NotFound
from dearkd.jobs.model import dataset_of
from dearkd.specs import SynthesisSpec
from dearkd.specs.budget import EndedEarly
from dearkd.work.attempt import Attempt
from dearkd_synth.service.forecast_unit import latest_forecast


def is_wanted(attempt: Attempt, spec: SynthesisSpec, index: int) -> bool:
    """Tell whether a claimed shard is to be made; if not, the job is concluded, and the claim is over.

    Not, where it begins a round that would not end within the job's minutes, or for which its forecast expects too
    little. The first round is always made, and a round that has begun is finished: also one of which this very shard
    lies in storage, whose maker died before it said so.

    Args:
        attempt: at the shard's unit.
        spec: the job's.
        index: of the shard.
    """
    rounds = spec.cut_in_rounds
    number = rounds.of_shard(index)
    if number == 0 or not spec.may_end_early:
        return True
    ended = _as_published(attempt)
    if ended is None or rounds.of_sample(ended.made) > number:
        ends: list[Callable[[Attempt, SynthesisSpec, int], EndedEarly | None]] = [_for_time, _for_lack_of_gain]
        ended = next(filter(None, (end(attempt, spec, number) for end in ends)), None)
        if ended is None or attempt.storage.exists(f"datasets/{dataset_of(attempt.job.id)}/{shard_name(index)}"):
            return True
    first = str(rounds.shards_before(rounds.of_sample(ended.made)))
    if not attempt.publish(lambda: attempt.ledger.conclude(attempt.claim, first, ended)):
        return True
    attempt.stop_reporting()
    return False


def _as_published(attempt: Attempt) -> EndedEarly | None:
    """The end that the job's manifest tells of, which is there only where Redis was lost since it was written."""
    try:
        return datasets(attempt.storage).get(dataset_of(attempt.job.id)).ended_early
    except NotFound:
        return None


def _for_time(attempt: Attempt, spec: SynthesisSpec, number: int) -> EndedEarly | None:
    """The end of a job, if the round would not end in time at the pace so far.

    That is the pace of all its workers, with all that they do beside. Before any image is done nothing is known of it,
    and rounds begin while there is time.
    """
    minutes = spec.budget.minutes if spec.budget else None
    if minutes is None:
        return None
    rounds = spec.cut_in_rounds
    seconds, done = attempt.ledger.pace(attempt.job.id)
    # Of a job that was retried on request more is done than was made in these seconds. It begins a round too many then.
    expected = seconds * max(1.0, rounds.samples_before(number + 1) / done) if done else seconds
    if expected <= 60 * minutes:
        return None
    if seconds > 60 * minutes:
        why = (
            f"{_minutes(seconds)} minutes are over, more than the budget of {minutes:g}, and a round that began is made"
        )
    else:
        images = rounds.samples_before(number + 1) - rounds.samples_before(number)
        why = (
            f"after {_minutes(seconds)} minutes the next round of {images:,} images would end after "
            f"{_minutes(expected)}, not within the budget of {minutes:g}"
        )
    return _ended("budget", why, spec, number)


def _for_lack_of_gain(attempt: Attempt, spec: SynthesisSpec, number: int) -> EndedEarly | None:
    """The end of a job, if all images from a round on are expected to bring less than `stop_below` points."""
    stop_below = spec.budget.stop_below if spec.budget else None
    found = None if stop_below is None else latest_forecast(attempt, spec)
    gain = None if found is None else found.gain_behind(spec.cut_in_rounds.samples_before(number))
    if gain is None or stop_below is None or 100 * gain >= stop_below:
        return None
    why = f"all other images are expected to bring {100 * gain:.2g} points of accuracy, less than {stop_below:g}"
    return _ended("no_gain", why, spec, number)


def _ended(reason: Literal["budget", "no_gain"], why: str, spec: SynthesisSpec, number: int) -> EndedEarly:
    made, planned = spec.cut_in_rounds.samples_before(number), spec.num_samples
    detail = f"{why}: {made:,} of {planned:,} planned images are made"
    return EndedEarly(reason=reason, planned=planned, made=made, detail=detail)


def note_end(attempt: Attempt, spec: SynthesisSpec, ended: EndedEarly | None) -> None:
    """Tell the log why a job ended early, and where it took longer than its budget all the same."""
    if ended is not None:
        attempt.note(f"the job ends early: {ended.detail}")
    minutes = spec.budget.minutes if spec.budget else None
    seconds, _ = attempt.ledger.pace(attempt.job.id)
    if minutes is not None and seconds > 60 * minutes:
        attempt.note(
            f"it took {_minutes(seconds)} minutes, more than its budget of {minutes:g}: at least one round is made, "
            "and what has begun is finished"
        )


def delete_left_out(attempt: Attempt, shards: Iterable[Shard]) -> None:
    """Delete what workers stored, and died before they said so, of a round whose first shard was left out since."""
    prefix, kept = f"datasets/{dataset_of(attempt.job.id)}", {shard.name for shard in shards}
    for stored in attempt.storage.objects(prefix):
        name = stored.key.removeprefix(f"{prefix}/")
        if name.endswith(".tar") and name not in kept:
            attempt.storage.delete(stored.key)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f}" if seconds >= 60 else f"{seconds / 60:.2g}"
