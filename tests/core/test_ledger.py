"""Jobs and their units, on a real Redis: what each step promises, and a machine that tries sequences of them."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from specs_for_tests import synthesis_spec, training_spec

from dearkd.attempt import Attempt
from dearkd.datasets import Shard
from dearkd.errors import Conflict, DiskFull, InvalidInput, LimitReached, LostLease, NotFound
from dearkd.jobs import Job, JobError
from dearkd.ledger import Claim, Ledger, holder
from dearkd.resources import StoredFile
from dearkd.settings import Settings
from dearkd.store import JobStore, dataset_of
from dearkd.worker import drain

LEASE = 60.0
STUDENT = StoredFile(name="adaptive_student.safetensors", bytes=1, sha256="0" * 64)
ADAPTIVE = {"weights": {"adaptive": 1.0}, "adaptive_every": 2}
"""Of three shards 0 and 2 come first, then the student, then 1."""


def make_shard(index: int, samples: int = 10) -> Shard:
    return Shard(name=f"train-{index:06d}.tar", bytes=1, sha256="0" * 64, samples=samples, classes={0: samples})


def synthesis(store: JobStore, shards: int = 3, owner: str | None = None, **fields: object) -> Job:
    spec = synthesis_spec(images_per_class=shards, batch_size=10, shard_samples=10, **fields)
    assert spec.num_shards == shards
    return store.create_synthesis(spec, images=spec.num_samples, shards=shards, owner=owner)


def claim(ledger: Ledger, kind: str = "synthesis") -> Claim:
    found = ledger.claim(kind, LEASE)  # type: ignore[arg-type]  # the literal is the caller's
    assert found is not None
    return found


def mark(ledger: Ledger, unit: Claim, *, units: int) -> None:
    """What a worker does: the shard, or the student, goes to storage, then the unit is marked."""
    made = STUDENT if unit.unit == "student" else make_shard(int(unit.unit))
    ledger.store.storage.put(f"datasets/{dataset_of(unit.job)}/{made.name}", b"x")
    ledger.done(unit, made, units=units)


def expire_all(ledger: Ledger) -> None:
    """What the clock does: every lease runs out."""
    for member in ledger.redis.zrange("dearkd:leases", 0, -1):
        ledger.redis.zadd("dearkd:leases", {member: 0})


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
        mark(ledger, unit, units=3)
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
    mark(ledger, first, units=4)
    ledger.release(between)
    assert claim(ledger).job == other.id, "one of the first shards is still being made"
    mark(ledger, second, units=4)
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
        mark(ledger, trainer, units=4)
    assert ledger.claim("synthesis", LEASE) is None
    mark(ledger, again, units=4)
    last = claim(ledger)
    assert (last.job, last.unit) == (job.id, "1")
    mark(ledger, last, units=4)
    finishing = claim(ledger)
    assert (finishing.job, finishing.unit) == (job.id, "finish")
    ledger.complete(finishing, {"dataset": "ds"})
    assert store.get(job.id).progress.done == 30


def test_a_student_that_is_gone_from_storage_is_trained_again_on_retry(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, **ADAPTIVE)
    for expected in ("0", "2", "student"):
        unit = claim(ledger)
        assert unit.unit == expected
        mark(ledger, unit, units=4)
    ledger.fail(job.id, JobError(code="x", message="x", retryable=True), claim(ledger))
    store.storage.delete(f"datasets/{dataset_of(job.id)}/{STUDENT.name}")
    store.storage.delete(f"datasets/{dataset_of(job.id)}/{make_shard(2).name}")
    store.retry(job.id)
    for expected in ("2", "student", "1"):
        unit = claim(ledger)
        assert unit.unit == expected
        mark(ledger, unit, units=4)
    assert claim(ledger).unit == "finish"


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
    order = []
    for _ in range(4):
        unit = claim(ledger)
        order.append(unit.job)
        mark(ledger, unit, units=4)
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
        lambda: ledger.done(stale, make_shard(0), units=3),
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
        mark(ledger, claim(ledger), units=3)
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
    mark(ledger, first, units=3)
    assert store.get(job.id).status == "canceling"
    mark(ledger, second, units=3)
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


def test_retry_does_only_what_is_missing(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    mark(ledger, claim(ledger), units=3)
    ledger.fail(job.id, JobError(code="x", message="x", retryable=True), claim(ledger))
    again = store.retry(job.id)
    assert (again.status, again.attempt, again.error) == ("queued", 2, None)
    assert not store.storage.exists(f"jobs/{job.id}/final.json")
    assert [claim(ledger).unit for _ in range(1)] == ["1"]
    with pytest.raises(Conflict):
        store.retry(job.id)


def test_retry_makes_again_what_is_not_in_storage_any_more(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    for _ in range(3):
        mark(ledger, claim(ledger), units=3)
    ledger.fail(job.id, JobError(code="x", message="x", retryable=True), claim(ledger))
    prefix = f"datasets/{dataset_of(job.id)}"
    store.storage.delete(f"{prefix}/train-000001.tar")
    store.storage.put(f"{prefix}/train-000002.tar", b"longer")
    store.retry(job.id)
    assert [stored.key for stored in store.storage.objects(prefix)] == [f"{prefix}/train-000000.tar"]
    for expected in ("1", "2"):
        unit = claim(ledger)
        assert unit.unit == expected
        mark(ledger, unit, units=3)
    assert claim(ledger).unit == "finish"


def test_what_ended_a_process_is_told_of_its_units_at_once(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=2, parallelism=2)
    claim(ledger), claim(ledger)
    assert ledger.bury(holder(os.getppid() + 1), "x") == 0
    assert ledger.bury(holder(os.getppid()), "was killed by SIGKILL") == 2
    ledger.reap(max_deaths=1)
    error = store.get(job.id).error
    assert error is not None
    assert (error.code, "was killed by SIGKILL" in error.message) == ("worker_died", True)
    assert "unit 0 lost its worker" in store.storage.read(f"jobs/{job.id}/log.txt").decode()


def test_a_retry_during_the_settling_of_the_end_wins(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    store.cancel(job.id)
    ended = store.get(job.id)
    store.retry(job.id)
    store.settle(ended)  # whoever ended it comes to this only now
    assert store.get(job.id).status == "queued"
    assert not store.storage.exists(f"jobs/{job.id}/final.json")


def test_a_record_whose_acceptance_failed_is_forgotten_when_it_is_claimed(
    ledger: Ledger, store: JobStore, settings: Settings
) -> None:
    refused, accepted = synthesis(store, owner="a"), synthesis(store)
    store.storage.delete(f"jobs/{refused.id}/job.json")
    seen: list[str] = []

    def perform(attempt: Attempt) -> None:
        seen.append(attempt.job.id)
        raise DiskFull("no room")

    drain("synthesis", perform, settings)
    assert set(seen) == {accepted.id}
    with pytest.raises(NotFound):
        store.get(refused.id)
    failed = store.get(accepted.id).error
    assert failed is not None
    assert (failed.code, failed.retryable) == ("disk_full", True)
    assert {key.decode() for key in ledger.redis.keys(f"*{refused.id}*")} == set()
    assert [j.id for j in store.page("synthesis")[0]] == [accepted.id]
    assert ledger.redis.keys("dearkd:jobs:*@a") == []
    assert "failed: no room" in store.storage.read(f"jobs/{accepted.id}/log.txt").decode()


def test_jobs_that_redis_lost_are_retried_from_storage(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=2, priority="high", parallelism=2)
    run = store.create_training(training_spec(job.id), epochs=48, waits_for=job.id)
    competing = synthesis(store, priority="low", **ADAPTIVE)
    over = synthesis(store, shards=1)
    mark(ledger, claim(ledger), units=2)
    stale = claim(ledger)
    store.cancel(over.id)
    ledger.redis.flushall()
    with pytest.raises(Conflict, match="retry it first"):
        store.retry(run.id)
    again = store.retry(job.id)
    assert (again.status, again.attempt, again.spec) == ("queued", 2, job.spec)
    assert store.retry(run.id).status == "blocked"
    assert store.retry(over.id).attempt == 2
    with pytest.raises(Conflict):
        store.retry(job.id)
    first, second = claim(ledger), claim(ledger)
    assert {first.unit, second.unit} == {"0", "1"}
    assert first.job == second.job == job.id
    with pytest.raises(LostLease):
        ledger.beat(stale, LEASE)
    for unit in (first, second):
        mark(ledger, unit, units=2)
    ledger.complete(claim(ledger), {"dataset": "ds"})
    assert store.get(run.id).status == "queued"
    store.cancel(over.id)
    store.retry(competing.id)
    for expected in ("0", "2", "student", "1"):
        unit = claim(ledger)
        assert (unit.job, unit.unit) == (competing.id, expected)
        mark(ledger, unit, units=4)
    ledger.redis.flushall()
    with pytest.raises(Conflict, match="succeeded"):
        store.retry(job.id)
    with pytest.raises(NotFound):
        store.retry("syn-00000000000-00000000")


def test_a_blocked_run_is_queued_when_its_dataset_is_there(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=1)
    run = store.create_training(training_spec(job.id), epochs=48, waits_for=job.id)
    assert run.status == "blocked"
    assert ledger.claim("training", LEASE) is None
    mark(ledger, claim(ledger), units=1)
    ledger.complete(claim(ledger), {"dataset": "ds"})
    assert store.get(run.id).status == "queued"
    assert claim(ledger, "training").job == run.id
    late = store.create_training(training_spec(job.id), epochs=48, waits_for=job.id)
    assert late.status == "queued"


def test_a_blocked_run_fails_with_its_dataset_and_blocks_again_on_retry(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=1)
    run = store.create_training(training_spec(job.id), epochs=48, waits_for=job.id)
    ledger.fail(job.id, JobError(code="x", message="x", retryable=True), claim(ledger))
    failed = store.get(run.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("dataset_failed", True)
    for refused in (
        lambda: store.create_training(training_spec(job.id), epochs=48, waits_for=job.id),
        lambda: store.retry(run.id),
    ):
        with pytest.raises(Conflict) as error:
            refused()
        assert error.value.code == "dataset_failed"
    assert len(list(store.storage.objects("jobs"))) == 4  # job.json and final.json of both: the refused left nothing
    store.retry(job.id)
    assert store.retry(run.id).status == "blocked"


def test_pages_are_newest_first_and_complete(store: JobStore) -> None:
    made = [synthesis(store).id for _ in range(5)]
    store.cancel(made[2])
    seen: list[str] = []
    after = None
    while True:
        jobs, more = store.page("synthesis", limit=2, after=after)
        seen += [job.id for job in jobs]
        if not more:
            break
        after = seen[-1]
    assert seen == made[::-1]
    assert [job.id for job in store.page("synthesis", status="canceled")[0]] == [made[2]]
    assert len(list(store.active("synthesis"))) == 4


def test_events_tell_the_story_in_order(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=1)
    mark(ledger, claim(ledger), units=1)
    ledger.complete(claim(ledger), {"dataset": "ds"})
    events, more = store.events(job.id)
    assert [event.data["status"] for event in events if event.type == "status"] == ["queued", "running", "succeeded"]
    assert not more
    first, more = store.events(job.id, limit=1)
    assert more
    rest, _ = store.events(job.id, after=first[0].id)
    assert [*first, *rest] == events


def test_a_lost_wake_up_is_made_good(ledger: Ledger, store: JobStore) -> None:
    synthesis(store)
    ledger.redis.delete("rq:queue:synth")
    ledger.reap(max_deaths=3)
    assert ledger.redis.llen("rq:queue:synth") == 1
    ledger.reap(max_deaths=3)
    assert ledger.redis.llen("rq:queue:synth") == 1


def test_no_more_jobs_wait_than_may_however_many_ask_at_once(ledger: Ledger, store: JobStore) -> None:
    spec = synthesis_spec(images_per_class=1, batch_size=10)

    def ask(_: int) -> str:
        try:
            return store.create_synthesis(spec, images=10, shards=1, max_queued=5).id
        except LimitReached as refused:
            return refused.code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    accepted = [answer for answer in answers if answer != "too_many_jobs"]
    assert len(accepted) == 5
    assert {stored.key for stored in store.storage.objects("jobs")} == {f"jobs/{job}/job.json" for job in accepted}
    assert {job.id for job in store.page("synthesis")[0]} == set(accepted)
    claim(ledger)
    assert store.create_synthesis(spec, images=10, shards=1, max_queued=5).status == "queued", "one of them has begun"


def test_what_is_being_deleted_takes_no_more_jobs(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, shards=1)
    for gone, pointer in (("tch", "/teacher"), (dataset_of(job.id), "/dataset")):
        store.announce_deletion(gone)
        with pytest.raises(InvalidInput, match="is being deleted") as error:
            store.create_training(training_spec(job.id), epochs=1, waits_for=job.id)
        assert [e.pointer for e in error.value.errors] == [pointer]
        store.withdraw_deletion(gone)
    assert store.page("training") == ([], False)
    assert store.create_training(training_spec(job.id), epochs=1, waits_for=job.id).status == "blocked"
