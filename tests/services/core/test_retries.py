"""Automatic retries on a real Redis: which failures are tried again, when, how often, and what steers them."""

import time
from datetime import UTC, datetime

import pytest

from dearkd.errors import Conflict, DiskFull, LostLease
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job, JobError
from dearkd.jobs.queue import queue
from dearkd.jobs.store import JobStore
from dearkd.settings import Settings
from dearkd.work.attempt import Attempt
from dearkd.work.worker import drain
from tests.support.ledger_steps import claim, expire_all, let_retries_begin, mark, synthesis
from tests.support.specs import training_spec

ERROR = JobError(code="disk_full", message="no room is left", retryable=True)


def nothing_to_do(ledger: Ledger) -> bool:
    return ledger.claim("synthesis", 60.0) is None


def seconds_left(job: Job) -> float:
    assert job.retry_at is not None
    return (job.retry_at - datetime.now(UTC)).total_seconds()


def test_a_job_waits_says_why_and_goes_on_from_what_it_made(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=2)
    mark(ledger, claim(ledger))
    told = ledger.fail(job.id, ERROR, claim(ledger))
    waiting = store.get(job.id)
    assert (waiting.status, waiting.attempt, waiting.error, waiting.finished_at) == ("queued", 2, ERROR, None)
    assert waiting.retry_at is not None
    assert 5 < seconds_left(waiting) <= 10
    assert f"retry 1 of 2 begins at {waiting.retry_at.isoformat(timespec='milliseconds')}" in told
    last = [event for event in store.events(job.id)[0] if event.type == "status"][-1]
    assert last.data["status"] == "queued"
    assert last.data["attempt"] == 2
    assert last.data["error"] == ERROR.model_dump()
    assert datetime.fromisoformat(last.data["retry_at"]) == waiting.retry_at
    assert not store.storage.exists(f"jobs/{job.id}/final.json")
    assert not ledger.redis.smembers("dearkd:unsettled")
    queue(ledger.redis, "synth").empty()
    ledger.reap(max_deaths=3)
    assert nothing_to_do(ledger)
    assert len(queue(ledger.redis, "synth")) == 0, "nobody is woken before the time"
    let_retries_begin(ledger)
    assert len(queue(ledger.redis, "synth")) == 1, "somebody is woken at the time"
    begun = store.get(job.id)
    assert (begun.status, begun.error, begun.retry_at) == ("queued", None, None)
    unit = claim(ledger)
    assert unit.unit == "1", "shard 0 is made"
    for _ in range(2):
        mark(ledger, unit)
        unit = claim(ledger)
    ledger.complete(unit, {"dataset": "ds"})
    ended = store.get(job.id)
    assert (ended.status, ended.attempt, ended.error) == ("succeeded", 2, None)


def test_each_wait_is_twice_the_one_before_and_the_last_failure_is_the_jobs(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=8)
    run = store.create_training(training_spec(job.id), epochs=1, waits_for=job.id)
    waits = []
    for number in range(8):
        ledger.fail(job.id, ERROR, claim(ledger))
        waits.append(seconds_left(store.get(job.id)))
        assert store.get(job.id).attempt == number + 2
        assert store.get(run.id).status == "blocked", "its dataset may still come"
        let_retries_begin(ledger)
    for wait, whole in zip(waits, [10, 20, 40, 80, 160, 320, 360, 360], strict=True):
        assert whole - 5 < wait <= whole
    last = JobError(code="disk_full", message="the ninth", retryable=True)
    assert ledger.fail(job.id, last, claim(ledger)) == "failed"
    ended = store.get(job.id)
    assert (ended.status, ended.attempt, ended.error, ended.retry_at) == ("failed", 9, last, None)
    assert store.storage.exists(f"jobs/{job.id}/final.json")
    assert store.get(run.id).error.code == "dataset_failed"


@pytest.mark.parametrize("fields", [{}, {"max_retries": 0}])
def test_without_the_field_a_failure_is_the_end(ledger: Ledger, store: JobStore, fields: dict[str, int]) -> None:
    job = synthesis(store, **fields)
    assert ledger.fail(job.id, ERROR, claim(ledger)) == "failed"
    assert (store.get(job.id).status, store.get(job.id).attempt) == ("failed", 1)


def test_what_the_same_spec_would_do_again_is_not_tried_again(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=3)
    error = JobError(code="diverged", message="the loss is not finite", retryable=False)
    assert ledger.fail(job.id, error, claim(ledger)) == "failed"
    assert (store.get(job.id).status, store.get(job.id).error) == ("failed", error)


def test_the_bound_on_running_time_holds_for_all_tries_together(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=3, timeout_seconds=100.0)
    ledger.fail(job.id, ERROR, claim(ledger))
    ledger.redis.hincrbyfloat(f"dearkd:job:{job.id}", "ran", 101)  # what the clock does
    let_retries_begin(ledger)
    claim(ledger)
    ledger.reap(max_deaths=3)
    ended = store.get(job.id)
    assert (ended.status, ended.error.code if ended.error else None) == ("failed", "timed_out")
    assert store.retry(job.id).status == "queued"
    claim(ledger)
    ledger.reap(max_deaths=3)
    assert store.get(job.id).status == "running", "who asks for a retry asks for its time"


def test_time_that_a_running_job_waits_for_room_does_not_count(ledger: Ledger, store: JobStore) -> None:
    run = store.create_training(training_spec("ds-1", timeout_seconds=0.5), epochs=1, waits_for=None)

    def status_after(seconds: float) -> str:
        time.sleep(seconds)
        ledger.reap(max_deaths=3)
        return store.get(run.id).status

    unit = claim(ledger, "training")
    for what in ("room", "more room"):
        ledger.wait_for(unit, what)
        assert status_after(0.6) == "running"
        assert store.get(run.id).waiting_for == what
    ledger.release(unit)
    assert store.get(run.id).waiting_for is None
    unit = claim(ledger, "training")
    ledger.wait_for(unit, "room")
    store.pause(run.id)
    ledger.release(unit)
    assert status_after(0.6) == "paused"
    store.resume(run.id)
    lost, unit = unit, claim(ledger, "training")
    ledger.wait_for(lost, "room")  # whose clock is no longer its
    ledger.wait_for(unit, None)
    assert ledger.pace(run.id)[0] < 0.4
    assert status_after(0.3) == "running", "it has hardly run yet"
    ledger.wait_for(unit, None)  # as each that begins says, whether it waited or not
    assert status_after(0.4) == "failed"
    error = store.get(run.id).error
    assert error is not None
    assert error.code == "timed_out"


@pytest.mark.parametrize("held", [True, False])
def test_three_deaths_in_a_row_are_one_failure_and_are_counted_anew(
    ledger: Ledger, store: JobStore, held: bool
) -> None:
    """`held`: another worker has a unit, so that the job is still running when its third worker dies."""
    job = synthesis(store, max_retries=1, parallelism=2)
    for round_ends in ("queued", "failed"):
        other = claim(ledger) if held else None
        for _ in range(3):
            assert store.get(job.id).status != "failed"
            dying = claim(ledger)
            ledger.redis.zadd("dearkd:leases", {f"{job.id}#{dying.unit}": 0})
            ledger.reap(max_deaths=3)
        assert store.get(job.id).status == round_ends
        if other is not None:
            with pytest.raises(LostLease):
                ledger.beat(other, 60.0)
        assert ledger.redis.zcard("dearkd:leases") == 0
        let_retries_begin(ledger)
    error = store.get(job.id).error
    assert error is not None
    assert (error.code, "3 times in a row" in error.message) == ("worker_died", True)
    begins = [line for line in ledger.log.read(job.id).splitlines() if "retry 1 of 1 begins at" in line]
    assert len(begins) == 1
    assert "ended its worker 3 times in a row" in begins[0]


def test_what_others_hold_is_lost_as_at_the_end_of_a_job(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=1, parallelism=2)
    first, second = claim(ledger), claim(ledger)
    ledger.fail(job.id, ERROR, first)
    with pytest.raises(LostLease):
        mark(ledger, second)
    with pytest.raises(LostLease):
        ledger.fail(job.id, ERROR, first)
    assert store.get(job.id).attempt == 2, "an answer that was lost costs no second retry"
    let_retries_begin(ledger)
    assert [claim(ledger).unit, claim(ledger).unit] == ["0", "1"]


def test_a_job_that_waits_can_be_canceled_at_once(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=3)
    run = store.create_training(training_spec(job.id), epochs=1, waits_for=job.id)
    ledger.fail(job.id, ERROR, claim(ledger))
    canceled = store.cancel(job.id)
    assert (canceled.status, canceled.error, canceled.retry_at) == ("canceled", None, None)
    assert store.get(run.id).status == "failed"
    let_retries_begin(ledger)
    assert nothing_to_do(ledger)
    assert store.get(job.id).status == "canceled"


def test_a_job_that_waits_can_be_paused_and_resuming_it_waits_no_longer(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=3)
    ledger.fail(job.id, ERROR, claim(ledger))
    paused = store.pause(job.id)
    assert (paused.status, paused.error, paused.retry_at) == ("paused", None, None)
    let_retries_begin(ledger)
    assert nothing_to_do(ledger)
    assert store.get(job.id).status == "paused"
    assert store.resume(job.id).status == "queued"
    assert claim(ledger).unit == "0"


def test_what_fails_before_it_hears_of_a_pause_stays_paused(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=1)
    unit = claim(ledger)
    store.pause(job.id)
    assert "when the job is resumed" in ledger.fail(job.id, ERROR, unit)
    paused = store.get(job.id)
    assert (paused.status, paused.attempt, paused.retry_at) == ("paused", 2, None)
    let_retries_begin(ledger)
    assert nothing_to_do(ledger)
    assert store.resume(job.id).status == "queued"
    assert ledger.fail(job.id, ERROR, claim(ledger)) == "failed", "that was its retry"


def test_what_fails_while_it_is_canceled_is_not_tried_again(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=3)
    unit = claim(ledger)
    store.cancel(job.id)
    assert ledger.fail(job.id, ERROR, unit) == "failed"
    assert store.get(job.id).status == "failed"


def test_another_priority_does_not_end_the_wait(ledger: Ledger, store: JobStore) -> None:
    job, other = synthesis(store, max_retries=1), synthesis(store)
    ledger.fail(job.id, ERROR, claim(ledger))
    store.set_priority(job.id, "high")
    unit = claim(ledger)
    assert unit.job == other.id
    ledger.release(unit)
    let_retries_begin(ledger)
    assert claim(ledger).job == job.id


def test_a_retry_on_request_is_refused_while_it_waits_and_counts_anew(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=1)
    ledger.fail(job.id, ERROR, claim(ledger))
    with pytest.raises(Conflict, match="is queued: only a failed or canceled job"):
        store.retry(job.id)
    let_retries_begin(ledger)
    ledger.fail(job.id, ERROR, claim(ledger))
    assert store.retry(job.id).attempt == 3
    assert "retry 1 of 1" in ledger.fail(job.id, ERROR, claim(ledger))


def test_a_run_whose_dataset_failed_is_not_tried_again_by_itself(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    run = store.create_training(training_spec(job.id, max_retries=5), epochs=1, waits_for=job.id)
    ledger.fail(job.id, ERROR, claim(ledger))
    assert (store.get(run.id).status, store.get(run.id).attempt) == ("failed", 1)


def test_a_worker_notes_why_and_when_and_its_lease_is_free(ledger: Ledger, store: JobStore, settings: Settings) -> None:
    job = synthesis(store, max_retries=1)

    def perform(attempt: Attempt) -> None:
        raise DiskFull("no room is left in storage: make room and retry")

    for log in ("retry 1 of 1 begins at", "failed"):
        assert drain("synthesis", perform, settings) == 1, "and then it has nothing to do"
        assert log in ledger.log.read(job.id).splitlines()[-1]
        assert "no room is left in storage" in ledger.log.read(job.id).splitlines()[-1]
        let_retries_begin(ledger)
    assert store.get(job.id).status == "failed"
    expire_all(ledger)
    assert ledger.redis.zcard("dearkd:leases") == 0


def test_a_record_of_before_has_no_retries(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    ledger.redis.hdel(f"dearkd:job:{job.id}", "max_retries")
    assert ledger.fail(job.id, ERROR, claim(ledger)) == "failed"


def test_a_discarded_job_leaves_no_wait(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, max_retries=1)
    ledger.fail(job.id, ERROR, claim(ledger))
    ledger.discard(job.id)
    assert not ledger.redis.exists("dearkd:retries")
    ledger.reap(max_deaths=3)
