"""What clients ask of jobs, on a real Redis: accepted or refused, retried, released, listed."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dearkd.errors import Conflict, DiskFull, InvalidInput, LimitReached, LostLease, NotFound
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import JobError, dataset_of
from dearkd.jobs.store import JobStore, refusal_key
from dearkd.settings import Settings
from dearkd.work.attempt import Attempt
from dearkd.work.worker import drain
from tests.support.ledger_steps import ADAPTIVE, LEASE, STUDENT, claim, make_shard, mark, synthesis
from tests.support.specs import synthesis_spec, training_spec


def test_a_student_that_is_gone_from_storage_is_trained_again_on_retry(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, **ADAPTIVE)
    for expected in ("0", "2", "student"):
        unit = claim(ledger)
        assert unit.unit == expected
        mark(ledger, unit)
    ledger.fail(job.id, JobError(code="x", message="x", retryable=True), claim(ledger))
    store.storage.delete(f"datasets/{dataset_of(job.id)}/{STUDENT.name}")
    store.storage.delete(f"datasets/{dataset_of(job.id)}/{make_shard(2).name}")
    store.retry(job.id)
    for expected in ("2", "student", "1"):
        unit = claim(ledger)
        assert unit.unit == expected
        mark(ledger, unit)
    assert claim(ledger).unit == "finish"


def test_retry_does_only_what_is_missing(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    mark(ledger, claim(ledger))
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
        mark(ledger, claim(ledger))
    ledger.fail(job.id, JobError(code="x", message="x", retryable=True), claim(ledger))
    prefix = f"datasets/{dataset_of(job.id)}"
    store.storage.delete(f"{prefix}/train-000001.tar")
    store.storage.put(f"{prefix}/train-000002.tar", b"longer")
    store.retry(job.id)
    assert [stored.key for stored in store.storage.objects(prefix)] == [f"{prefix}/train-000000.tar"]
    for expected in ("1", "2"):
        unit = claim(ledger)
        assert unit.unit == expected
        mark(ledger, unit)
    assert claim(ledger).unit == "finish"


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
    store.storage.put(refusal_key(refused.id), b"")
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
    mark(ledger, claim(ledger))
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
        mark(ledger, unit)
    ledger.complete(claim(ledger), {"dataset": "ds"})
    assert store.get(run.id).status == "queued"
    store.cancel(over.id)
    store.retry(competing.id)
    for expected in ("0", "2", "student", "1"):
        unit = claim(ledger)
        assert (unit.job, unit.unit) == (competing.id, expected)
        mark(ledger, unit)
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
    mark(ledger, claim(ledger))
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
    mark(ledger, claim(ledger))
    ledger.complete(claim(ledger), {"dataset": "ds"})
    events, more = store.events(job.id)
    assert [event.data["status"] for event in events if event.type == "status"] == ["queued", "running", "succeeded"]
    assert not more
    first, more = store.events(job.id, limit=1)
    assert more
    rest, _ = store.events(job.id, after=first[0].id)
    assert [*first, *rest] == events


def test_no_more_jobs_wait_than_may_however_many_ask_at_once(ledger: Ledger, store: JobStore) -> None:
    spec = synthesis_spec(images_per_class=1, batch_size=10)

    def ask(_: int) -> str:
        try:
            return store.create_synthesis(spec, images=10, max_queued=5).id
        except LimitReached as refused:
            return refused.code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    accepted = [answer for answer in answers if answer != "too_many_jobs"]
    assert len(accepted) == 5
    assert {stored.key for stored in store.storage.objects("jobs")} == {f"jobs/{job}/job.json" for job in accepted}
    assert {job.id for job in store.page("synthesis")[0]} == set(accepted)
    claim(ledger)
    assert store.create_synthesis(spec, images=10, max_queued=5).status == "queued", "one of them has begun"


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


def test_a_job_of_many_units_is_accepted_and_retried_in_few_commands(ledger: Ledger, store: JobStore) -> None:
    """Redis answers nobody else meanwhile: a command for each of 100,000 units would take it seconds."""
    ledger.redis.config_resetstat()
    job = synthesis(store, shards=20_000)
    store.cancel(job.id)
    store.retry(job.id)
    commands = ledger.redis.info("commandstats")
    assert sum(commands[name]["calls"] for name in commands) < 500
    assert ledger.redis.zcard(f"dearkd:job:{job.id}:open") == 20_001
    assert [claim(ledger).unit] == ["0"]
