"""Jobs that are concluded before all of their units are made, on a real Redis."""

import time

import pytest

from dearkd.errors import LostLease
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.store import JobStore
from dearkd.specs.budget import EndedEarly
from tests.support.ledger_steps import LEASE, claim, expire_all, mark, synthesis

ENDED = EndedEarly(reason="budget", planned=50, made=20, detail="the time is up")


def finish(ledger: Ledger) -> None:
    unit = claim(ledger)
    assert unit.unit == "finish"
    ledger.complete(unit, {"dataset": "ds"}, total=20)


def test_what_has_not_begun_is_left_out_and_the_rest_is_finished(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=5, parallelism=3)
    mark(ledger, claim(ledger))
    second, third = claim(ledger), claim(ledger)
    assert ledger.ended_early(job.id) is None
    assert ledger.conclude(third, "2", ENDED)
    assert ledger.ended_early(job.id) == ENDED
    with pytest.raises(LostLease):
        mark(ledger, third)
    assert ledger.claim("synthesis", LEASE) is None, "the second is still at work"
    expire_all(ledger)
    ledger.reap(max_deaths=3)
    assert ledger.ended_early(job.id) == ENDED
    again = claim(ledger)
    assert again.unit == second.unit == "1", "what was kept is made again after a death"
    mark(ledger, again)
    finish(ledger)
    ended = store.get(job.id)
    assert (ended.status, ended.progress.done, ended.progress.total) == ("succeeded", 20, 20)
    assert ledger.redis.zcard("dearkd:leases") == 0


def test_a_unit_of_which_others_have_begun_is_not_left_out(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=5, parallelism=5)
    units = [claim(ledger) for _ in range(4)]
    ledger.report(units[3], done=1, per_second=None, metrics={})
    assert not ledger.conclude(units[2], "2", ENDED), "the fourth has begun"
    mark(ledger, units[3])
    assert not ledger.conclude(units[2], "2", ENDED), "it is done"
    assert ledger.ended_early(job.id) is None
    for unit in units[:3]:
        mark(ledger, unit)
    last = claim(ledger)
    assert ledger.conclude(last, last.unit, ENDED)
    finish(ledger)


def test_who_claims_of_a_round_at_once_does_not_keep_the_others_from_concluding(
    ledger: Ledger, store: JobStore
) -> None:
    """Three workers begin with a round at the same moment, and each finds that time is up."""
    job = synthesis(store, shards=5, parallelism=3)
    for _ in range(2):
        mark(ledger, claim(ledger))
    three = [claim(ledger) for _ in range(3)]
    assert ledger.conclude(three[1], "2", ENDED)
    for other in three:
        ledger.report(other, done=7, per_second=1.0, metrics={})  # before it has heard of it
        assert ledger.pace(job.id)[1] == 20, "what is lost counts for nothing"
        with pytest.raises(LostLease):
            ledger.conclude(other, "2", ENDED)
        with pytest.raises(LostLease):
            mark(ledger, other)
        with pytest.raises(LostLease):
            ledger.beat(other, LEASE)
    assert ledger.redis.zcard("dearkd:leases") == 0
    finish(ledger)
    assert store.get(job.id).progress.done == 20


def test_a_conclusion_may_go_further_back(ledger: Ledger, store: JobStore) -> None:
    """Two workers look at the clock at once, each at the beginning of another round."""
    job = synthesis(store, shards=5, parallelism=2)
    mark(ledger, claim(ledger))
    earlier, later = claim(ledger), claim(ledger)
    assert ledger.conclude(later, "2", ENDED)
    further = ENDED.model_copy(update={"made": 10})
    assert ledger.conclude(earlier, "1", further)
    assert ledger.ended_early(job.id) == further
    finish(ledger)


def test_a_conclusion_by_who_lost_the_unit_changes_nothing(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=3)
    mark(ledger, claim(ledger))
    stale = claim(ledger)
    ledger.release(stale)
    with pytest.raises(LostLease):
        ledger.conclude(stale, "1", ENDED)
    assert ledger.ended_early(job.id) is None
    assert claim(ledger).unit == "1"


def test_a_concluded_job_goes_on_from_its_end_and_from_the_beginning_it_is_whole(
    ledger: Ledger, store: JobStore
) -> None:
    job = synthesis(store, shards=3)
    mark(ledger, claim(ledger))
    assert ledger.conclude(claim(ledger), "1", ENDED)
    store.cancel(job.id)
    store.retry(job.id)
    assert claim(ledger).unit == "finish", "it stays concluded"
    store.cancel(job.id)
    expire_all(ledger)
    ledger.reap(max_deaths=3)
    store.retry(job.id, from_beginning=True)
    assert ledger.ended_early(job.id) is None
    assert store.get(job.id).progress.total == 30
    for index in range(3):
        unit = claim(ledger)
        assert unit.unit == str(index)
        mark(ledger, unit)
    assert claim(ledger).unit == "finish"


def test_a_cancel_before_the_conclusion_is_not_forgotten(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=3)
    mark(ledger, claim(ledger))
    unit = claim(ledger)
    store.cancel(job.id)
    ledger.conclude(unit, "1", ENDED)
    assert store.get(job.id).status == "canceled"
    assert store.storage.exists(f"jobs/{job.id}/final.json")


def test_the_pace_counts_no_pauses_and_the_time_left_ends_with_the_budget(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=5, rounds=5, budget={"minutes": 1})
    assert ledger.pace(job.id) == (0.0, 0)
    unit = claim(ledger)
    time.sleep(0.2)
    ledger.report(unit, done=4, per_second=0.01, metrics={})
    eta = store.get(job.id).progress.eta_seconds
    assert eta is not None
    assert 0 < eta <= 60, "4600 s at that rate, but the budget is a minute"
    store.pause(job.id)
    ran, done = ledger.pace(job.id)
    assert ran >= 0.2
    assert done == 4
    time.sleep(0.3)
    assert ledger.pace(job.id) == (ran, 4)
    resumed = time.monotonic()
    store.resume(job.id)
    mark(ledger, unit)
    later, done = ledger.pace(job.id)
    assert ran < later <= ran + time.monotonic() - resumed + 0.01
    assert done == 10


def test_what_is_left_out_goes_over_groups_up_to_the_last(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=9, rounds=9, budget={"minutes": 1})
    for index in range(4):
        mark(ledger, claim(ledger))
        if index in (1, 3):
            told = claim(ledger)
            assert told.unit == f"forecast-{index + 1}"
            ledger.done(told, ENDED)  # whatever it found: it leaves no file
    fifth = claim(ledger)
    assert ledger.conclude(fifth, "4", ENDED)
    last = claim(ledger)
    assert last.unit == "finish"
    assert ledger.redis.zcard(f"dearkd:job:{job.id}:units") == 7, "four shards, two forecasts, the end"
    store.cancel(job.id)
    ledger.release(last)
    store.retry(job.id)
    assert claim(ledger).unit == "finish", "what left no file is not gone"
