"""What must not grow with the number of workers, or must keep up with it."""

import time
from typing import cast

from rq import Worker
from rq.serializers import JSONSerializer

from dearkd.jobs.ledger import FEW_WORKERS, Ledger
from dearkd.jobs.queue import alive, queue
from dearkd.jobs.store import MAX_WAKES, JobStore
from dearkd.redis_client import connect
from dearkd.settings import Settings
from tests.support.ledger_steps import claim, mark, synthesis

MANY = 40


def progress_events(ledger: Ledger, job: str) -> int:
    found = cast("list[tuple[bytes, dict[bytes, bytes]]]", ledger.redis.xrange(f"dearkd:job:{job}:events"))
    return sum(fields[b"type"] == b"progress" for _, fields in found)


def test_of_many_at_a_job_a_few_each_second_tell_what_all_have_done(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=MANY, parallelism=MANY)
    units = [claim(ledger) for _ in range(MANY)]
    began = time.monotonic()
    for done in (1, 2, 3):
        for unit in units:
            ledger.report(unit, done=done, per_second=0.5, metrics={"loss": 1.0})
    most = FEW_WORKERS + 1 + FEW_WORKERS * (time.monotonic() - began)
    assert FEW_WORKERS <= progress_events(ledger, job.id) <= most < 3 * MANY
    time.sleep(1 / FEW_WORKERS)
    ledger.report(units[0], done=3, per_second=0.5, metrics={})
    progress = store.get(job.id).progress
    assert (progress.done, progress.per_second) == (3 * MANY, 0.5 * MANY)


def test_a_job_for_many_workers_has_them_woken_soon(ledger: Ledger, store: JobStore) -> None:
    waiting = "rq:queue:synth"
    synthesis(store, shards=2 * MANY, parallelism=MANY)
    assert ledger.redis.llen(waiting) == MAX_WAKES
    ledger.reap(max_deaths=3)
    assert ledger.redis.llen(waiting) == MANY
    units = [claim(ledger) for _ in range(10)]
    ledger.redis.delete(waiting)
    ledger.reap(max_deaths=3)
    assert ledger.redis.llen(waiting) == MANY - 10
    units += [claim(ledger) for _ in range(MANY - 10)]
    ledger.redis.delete(waiting)
    ledger.reap(max_deaths=3)
    assert ledger.redis.llen(waiting) == 0, "no more may work on it at once"
    mark(ledger, units[0])
    ledger.reap(max_deaths=3)
    assert ledger.redis.llen(waiting) == 1


def test_jobs_that_no_more_may_work_on_do_not_hide_those_behind_them(ledger: Ledger, store: JobStore) -> None:
    for _ in range(101):
        synthesis(store, shards=2, priority="high")
    for _ in range(101):
        claim(ledger)
    synthesis(store, shards=1, priority="low")
    ledger.redis.delete("rq:queue:synth")
    ledger.reap(max_deaths=3)
    assert ledger.redis.llen("rq:queue:synth") == 1


def test_counting_workers_takes_as_many_calls_for_many_as_for_none(settings: Settings, ledger: Ledger) -> None:
    calls: list[str] = []
    redis = connect(settings, observer=lambda name, seconds, code: calls.append(name))
    assert alive(redis, "inspect") == 0
    for_none = len(calls)
    workers = [
        Worker([queue(ledger.redis, "inspect")], connection=ledger.redis, serializer=JSONSerializer)
        for _ in range(MANY)
    ]
    for worker in workers:
        worker.register_birth()
        worker.heartbeat()
    calls.clear()
    assert alive(redis, "inspect") == MANY
    assert len(calls) == for_none
    ledger.redis.persist(workers[0].key)  # what was written into a record that had run out
    ledger.redis.delete(workers[1].key)
    assert alive(redis, "inspect") == MANY - 2
