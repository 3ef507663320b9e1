"""Records that were written before jobs had their units as data: they run to the same end."""

import pytest

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job, JobError
from dearkd.jobs.store import JobStore
from tests.support.ledger_steps import ADAPTIVE, claim, expire_all, mark, synthesis
from tests.support.specs import training_spec

ERROR = JobError(code="x", message="x", retryable=True)


def age(ledger: Ledger, job: Job) -> Job:
    """Leave of a record what the earlier version wrote, by its own order of units: the student, if there is one, at
    -0.5, its shards far before it, and `finish` open only when all are done."""
    key = f"dearkd:job:{job.id}"
    every = job.spec.get("adaptive_every")
    opened = [unit.decode() for unit in ledger.redis.zrange(f"{key}:open", 0, -1)]
    ledger.redis.delete(f"{key}:units", f"{key}:open")
    if job.kind == "synthesis":
        ledger.redis.hset(key, "student_every", str(every or ""))
    if job.status == "blocked":
        return job
    for unit in opened:
        if unit == "student":
            place = -0.5
        elif unit == "finish":
            if opened != ["finish"] or ledger.redis.hlen(f"{key}:claims"):
                continue
            place = 1e15
        else:
            place = float(unit) if unit.isdigit() else 0.0
            place -= 1e12 if every and place % every == 0 else 0
        ledger.redis.zadd(f"{key}:open", {unit: place})
    return job


def work(ledger: Ledger, kind: str = "synthesis") -> list[str]:
    """Units in the order in which one worker after the other takes them, to the end of all jobs."""
    order = []
    while (unit := ledger.claim(kind, 60.0)) is not None:  # the literal is the caller's
        order.append(unit.unit)
        if unit.unit in ("finish", "run"):
            ledger.complete(unit, {"dataset": "ds"})
        else:
            mark(ledger, unit)
    return order


@pytest.mark.parametrize(
    ("fields", "order"),
    [({}, ["0", "1", "2", "finish"]), (ADAPTIVE, ["0", "2", "student", "1", "finish"])],
    ids=["shards", "with a student"],
)
@pytest.mark.parametrize("begun", range(5))
def test_a_job_goes_on_where_it_stood(
    ledger: Ledger, store: JobStore, fields: dict[str, object], order: list[str], begun: int
) -> None:
    job = synthesis(store, **fields)
    done = order[:-1][:begun]
    for _ in done:
        mark(ledger, claim(ledger))
    age(ledger, job)
    assert work(ledger) == order[len(done) :]
    assert store.get(job.id).status == "succeeded"


def test_the_barriers_hold_around_what_is_claimed(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, parallelism=4, **ADAPTIVE)
    first, second = claim(ledger), claim(ledger)
    age(ledger, job)
    assert ledger.claim("synthesis", 60.0) is None, "the student waits for both"
    mark(ledger, first)
    assert ledger.claim("synthesis", 60.0) is None
    expire_all(ledger)
    ledger.reap(max_deaths=3)
    again = claim(ledger)
    assert (again.unit, again.job) == (second.unit, job.id)
    mark(ledger, again)
    trainer = claim(ledger)
    assert trainer.unit == "student"
    assert ledger.claim("synthesis", 60.0) is None
    mark(ledger, trainer)
    assert work(ledger) == ["1", "finish"]


def test_a_unit_that_is_lost_before_anybody_claims_again_is_not_forgotten(ledger: Ledger, store: JobStore) -> None:
    lost, given_back = synthesis(store, shards=1), synthesis(store, shards=1)
    claim(ledger)
    expire_all(ledger)
    held = claim(ledger)
    for job in (lost, given_back):
        age(ledger, job)
    ledger.reap(max_deaths=3)
    ledger.release(held)
    assert sorted(work(ledger)) == ["0", "0", "finish", "finish"]
    assert {store.get(job.id).status for job in (lost, given_back)} == {"succeeded"}


@pytest.mark.parametrize("from_beginning", [False, True])
def test_a_job_that_failed_is_retried(ledger: Ledger, store: JobStore, from_beginning: bool) -> None:
    job = synthesis(store, **ADAPTIVE)
    mark(ledger, claim(ledger))
    ledger.fail(job.id, ERROR, claim(ledger))
    age(ledger, job)
    store.retry(job.id, from_beginning=from_beginning)
    assert work(ledger) == (["0"] if from_beginning else []) + ["2", "student", "1", "finish"]


def test_runs_that_wait_and_runs_that_do_not(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=1)
    waiting = store.create_training(training_spec(job.id), epochs=1, waits_for=job.id)
    other = store.create_training(training_spec("ds-1"), epochs=1, waits_for=None)
    for each in (job, waiting, other):
        age(ledger, each)
    assert work(ledger, "training") == ["run"]
    assert store.get(other.id).status == "succeeded"
    assert work(ledger) == ["0", "finish"]
    assert work(ledger, "training") == ["run"]


def test_a_spec_that_cannot_be_read_holds_up_nobody(ledger: Ledger, store: JobStore) -> None:
    strange, other = synthesis(store, shards=1), synthesis(store, shards=1)
    age(ledger, strange)
    ledger.redis.hset(f"dearkd:job:{strange.id}", "spec", "{}")
    found = claim(ledger)
    assert found.job == strange.id
    ledger.fail(strange.id, ERROR, found)  # as a worker does, which reads the spec first
    assert claim(ledger).job == other.id


def test_nor_does_one_of_which_something_is_still_claimed(ledger: Ledger, store: JobStore) -> None:
    strange = synthesis(store, shards=2, parallelism=2)
    held = claim(ledger)
    age(ledger, strange)
    ledger.redis.hset(f"dearkd:job:{strange.id}", "spec", "{}")
    other = synthesis(store, shards=1)
    assert claim(ledger).job == other.id
    ledger.release(held)
    assert claim(ledger).job == strange.id


@pytest.mark.parametrize("lost", [False, True], ids=["known to Redis", "lost to Redis"])
def test_a_job_whose_spec_cannot_be_read_is_retried_as_any_other(ledger: Ledger, store: JobStore, lost: bool) -> None:
    """It fails again, with words for what is wrong, where its worker reads it."""
    job = synthesis(store, shards=1)
    key = f"jobs/{job.id}/job.json"
    store.storage.put(key, job.model_copy(update={"spec": {"priority": "normal"}}).model_dump_json().encode())
    ledger.redis.hset(f"dearkd:job:{job.id}", "spec", '{"priority": "normal"}')
    ledger.fail(job.id, ERROR)
    if lost:
        ledger.redis.flushall()
    assert store.retry(job.id).status == "queued"
    assert claim(ledger).job == job.id
