"""Units of jobs on a real Redis: claimed, marked, given back, lost; and how jobs end by them."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from dearkd.errors import Conflict, LostLease, NotFound
from dearkd.jobs.ledger import Ledger, holder
from dearkd.jobs.model import JobError, dataset_of
from dearkd.jobs.store import JobStore
from tests.support.ledger_steps import ADAPTIVE, LEASE, claim, expire_all, make_shard, mark, synthesis
from tests.support.specs import training_spec


def test_a_job_runs_unit_by_unit_and_then_finishes(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    assert job.status == "queued"
    assert store.storage.exists(f"jobs/{job.id}/job.json")
    for index in range(3):
        unit = claim(ledger)
        assert unit.unit == str(index)
        assert store.get(job.id).status == "running"
        ledger.report(unit, done=5, per_second=2.0, metrics={"loss": 1.0})
        assert store.get(job.id).progress.done == index * 10 + 5
        mark(ledger, unit)
    finishing = claim(ledger)
    assert finishing.unit == "finish"
    ledger.complete(finishing, {"dataset": "ds"})
    ended = store.get(job.id)
    assert (ended.status, ended.result, ended.progress.done) == ("succeeded", {"dataset": "ds"}, 30)
    assert ended.finished_at is not None
    final = json.loads(store.storage.read(f"jobs/{job.id}/final.json"))
    assert final["status"] == "succeeded"
    assert ledger.claim("synthesis", LEASE) is None
    assert ledger.redis.zcard("dearkd:leases") == 0


def test_progress_is_counted_without_reading_what_was_made(ledger: Ledger, store: JobStore) -> None:
    """It is told each second by each worker, of up to a hundred thousand shards; here they cannot even be read."""
    job = synthesis(store, shards=4)
    for _ in range(2):
        mark(ledger, claim(ledger))
    payloads = ledger.payloads(job.id)
    ledger.redis.hset(f"dearkd:job:{job.id}:done", mapping=dict.fromkeys(payloads, b"unreadable"))
    third = claim(ledger)
    ledger.report(third, done=3, per_second=None, metrics={})
    assert store.get(job.id).progress.done == 23
    ledger.redis.hset(f"dearkd:job:{job.id}:done", mapping=payloads)
    # A shard that is gone when the job is retried does not count any more.
    ledger.fail(job.id, JobError(code="x", message="x", retryable=True), third)
    store.storage.delete(f"datasets/{dataset_of(job.id)}/train-000000.tar")
    store.retry(job.id)
    again = claim(ledger)
    assert again.unit == "0"
    ledger.report(again, done=2, per_second=None, metrics={})
    assert store.get(job.id).progress.done == 12


def test_parallelism_bounds_the_claims_of_a_job(ledger: Ledger, store: JobStore) -> None:
    synthesis(store, parallelism=2)
    first, _ = claim(ledger), claim(ledger)
    assert ledger.claim("synthesis", LEASE) is None
    ledger.release(first)
    assert claim(ledger).unit == first.unit


def test_shards_that_compete_with_the_jobs_own_student_wait_for_it(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, parallelism=4, **ADAPTIVE)
    other = synthesis(store, shards=2, priority="low")
    first, second = claim(ledger), claim(ledger)
    assert (first.unit, second.unit) == ("0", "2")
    between = claim(ledger)
    assert between.job == other.id, "nobody else has to wait with it"
    mark(ledger, first)
    ledger.release(between)
    assert claim(ledger).job == other.id, "one of the first shards is still being made"
    mark(ledger, second)
    trainer = claim(ledger)
    assert (trainer.job, trainer.unit) == (job.id, "student")
    ledger.report(trainer, done=0, per_second=None, metrics={"student_iteration": 3})
    assert store.get(job.id).progress.done == 20, "it makes no images"
    assert ledger.claim("synthesis", LEASE) is None, "the other job has no more room, and this one waits"
    ledger.redis.zadd("dearkd:leases", {f"{job.id}#student": 0})
    ledger.reap(max_deaths=3)
    again = claim(ledger)
    assert (again.job, again.unit) == (job.id, "student")
    with pytest.raises(LostLease):
        mark(ledger, trainer)
    assert ledger.claim("synthesis", LEASE) is None
    mark(ledger, again)
    last = claim(ledger)
    assert (last.job, last.unit) == (job.id, "1")
    mark(ledger, last)
    finishing = claim(ledger)
    assert (finishing.job, finishing.unit) == (job.id, "finish")
    ledger.complete(finishing, {"dataset": "ds"})
    assert store.get(job.id).progress.done == 30


def test_a_unit_is_claimed_once_however_many_ask(ledger: Ledger, store: JobStore) -> None:
    synthesis(store, shards=20, parallelism=20)
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: ledger.claim("synthesis", LEASE), range(40)))
    units = [found.unit for found in claims if found is not None]
    assert sorted(units, key=int) == [str(i) for i in range(20)]


def test_priority_goes_first_and_equals_take_turns(ledger: Ledger, store: JobStore) -> None:
    long = synthesis(store, shards=4)
    ledger.release(claim(ledger))
    short = synthesis(store, shards=1)
    urgent = synthesis(store, shards=1, priority="high")
    order: list[str] = []
    while len(order) < 4:
        unit = claim(ledger)
        if unit.unit == "finish":
            ledger.complete(unit, {"dataset": "ds"})
        else:
            order.append(unit.job)
            mark(ledger, unit)
    assert order[0] == urgent.id
    assert short.id in order[1:3]
    assert order.count(long.id) == 2


def test_a_stale_claim_changes_nothing(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    stale = claim(ledger)
    expire_all(ledger)
    taken = ledger.reap(max_deaths=3)
    assert [found.unit for found, _ in taken] == ["0"]
    assert store.get(job.id).attempt == 2
    current = claim(ledger)
    assert current.unit == "0"
    for act in (
        lambda: ledger.beat(stale, LEASE),
        lambda: ledger.done(stale, make_shard(0)),
        lambda: ledger.complete(stale, {"dataset": "x"}),
        lambda: ledger.fail(job.id, JobError(code="x", message="x", retryable=False), stale),
    ):
        with pytest.raises(LostLease):
            act()
    ledger.release(stale)
    assert ledger.beat(current, LEASE) == "running"
    assert store.get(job.id).status == "running"


def test_three_deaths_in_a_row_without_progress_fail_the_job(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    for death in range(3):
        claim(ledger)
        expire_all(ledger)
        ledger.reap(max_deaths=3)
        assert store.get(job.id).status == ("failed" if death == 2 else "queued")
    error = store.get(job.id).error
    assert error is not None
    assert error.code == "worker_died"


def test_progress_forgives_deaths(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    for _index in range(2):
        for _ in range(2):
            claim(ledger)
            expire_all(ledger)
            ledger.reap(max_deaths=3)
        mark(ledger, claim(ledger))
    assert store.get(job.id).status == "running"


def test_a_runs_checkpoint_forgives_deaths_and_three_in_one_interval_fail_it(ledger: Ledger, store: JobStore) -> None:
    run = store.create_training(training_spec("ds"), epochs=1, waits_for=None)

    def die() -> str:
        claim(ledger, "training")
        expire_all(ledger)
        ledger.reap(max_deaths=3)
        return store.get(run.id).status

    assert [die(), die()] == ["queued", "queued"]
    unit = claim(ledger, "training")
    ledger.forgive(unit)
    ledger.release(unit)
    assert [die(), die(), die()] == ["queued", "queued", "failed"]


def test_cancel_ends_a_queued_job_at_once_and_a_running_one_through_canceling(ledger: Ledger, store: JobStore) -> None:
    queued = synthesis(store)
    assert store.cancel(queued.id).status == "canceled"
    running = synthesis(store)
    unit = claim(ledger)
    assert store.cancel(running.id).status == "canceling"
    assert store.cancel(running.id).status == "canceling"
    assert ledger.beat(unit, LEASE) == "canceling"
    ledger.release(unit)
    assert store.get(running.id).status == "canceled"
    with pytest.raises(Conflict):
        store.cancel(running.id)
    with pytest.raises(NotFound):
        store.cancel("syn-nothing")


def test_a_cancel_between_the_last_beat_and_the_mark_is_not_forgotten(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, parallelism=2)
    first, second = claim(ledger), claim(ledger)
    store.cancel(job.id)
    mark(ledger, first)
    assert store.get(job.id).status == "canceling"
    mark(ledger, second)
    assert store.get(job.id).status == "canceled"
    assert store.storage.exists(f"jobs/{job.id}/final.json")
    store.retry(job.id)
    assert claim(ledger).unit == "2"


def test_a_canceled_job_whose_worker_died_ends_when_the_lease_does(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    claim(ledger)
    store.cancel(job.id)
    expire_all(ledger)
    ledger.reap(max_deaths=3)
    assert store.get(job.id).status == "canceled"
    assert store.storage.exists(f"jobs/{job.id}/final.json")


def test_what_ended_a_process_is_told_of_its_units_at_once(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=2, parallelism=2)
    claim(ledger), claim(ledger)
    assert ledger.expire(holder(os.getppid() + 1), "x") == 0
    assert ledger.expire(holder(os.getppid()), "was killed by SIGKILL") == 2
    ledger.reap(max_deaths=1)
    error = store.get(job.id).error
    assert error is not None
    assert (error.code, "was killed by SIGKILL" in error.message) == ("worker_died", True)
    assert "unit 0 lost its worker" in store.storage.read(f"jobs/{job.id}/log.txt").decode()


def test_a_lost_wake_up_is_made_good(ledger: Ledger, store: JobStore) -> None:
    synthesis(store)
    ledger.redis.delete("rq:queue:synth")
    ledger.reap(max_deaths=3)
    assert ledger.redis.llen("rq:queue:synth") == 1
    ledger.reap(max_deaths=3)
    assert ledger.redis.llen("rq:queue:synth") == 1


def test_words_that_are_no_utf8_are_kept_as_far_as_they_are(ledger: Ledger, store: JobStore) -> None:
    synthesis(store, shards=1)
    unit = claim(ledger)
    assert ledger.expire(holder(os.getppid(), os.getpid()), "could not read é\udc80") == 1
    ledger.reap(max_deaths=3)
    assert "could not read é?" in ledger.log.read(unit.job)
