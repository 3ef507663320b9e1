"""A retry from the beginning: nothing that was made before is gone on with."""

import pytest

from dearkd.errors import Conflict, NotFound
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job, JobError, dataset_of, model_of
from dearkd.jobs.restarts import starting_over
from dearkd.jobs.store import JobStore
from tests.support.ledger_steps import ADAPTIVE, claim, mark, synthesis
from tests.support.specs import training_spec

ERROR = JobError(code="corrupt_data", message="x", retryable=False)


def half_made(ledger: Ledger, store: JobStore) -> Job:
    """A synthesis job with two of four units done, that failed then."""
    job = synthesis(store, **ADAPTIVE)
    for _ in range(2):
        mark(ledger, claim(ledger))
    store.storage.put(f"jobs/{job.id}/shards/train-000000-x.json", b"{}")
    store.storage.put(f"datasets/{dataset_of(job.id)}/preview.png", b"picture")
    ledger.report(claim(ledger), done=3, per_second=1.0, metrics={"loss": 1.0})
    ledger.fail(job.id, ERROR)
    return job


def half_trained(ledger: Ledger, store: JobStore) -> Job:
    run = store.create_training(training_spec("ds-1"), epochs=48, waits_for=None)
    ledger.set_rows(run.id, [{"epoch": 1}, {"epoch": 2}])
    ledger.report(claim(ledger, "training"), done=2, per_second=1.0, metrics={"loss": 1.0})
    for name in ("checkpoints/checkpoint.json", "checkpoints/0-last.pt", "metrics.jsonl"):
        store.storage.put(f"runs/{run.id}/{name}", b"cut short")
    store.storage.put(f"models/{model_of(run.id)}/model.safetensors", b"of an attempt that died before the manifest")
    ledger.fail(run.id, ERROR)
    return run


@pytest.mark.parametrize("redis_lost", [False, True])
def test_a_synthesis_job_makes_every_shard_anew(ledger: Ledger, store: JobStore, redis_lost: bool) -> None:
    job = half_made(ledger, store)
    if redis_lost:
        store.settle(store.get(job.id))
        ledger.redis.flushall()
    again = store.retry(job.id, from_beginning=True)
    assert (again.status, again.attempt, again.error, again.metrics) == ("queued", 2, None, {})
    assert again.progress.model_dump(exclude={"total", "unit"}) == {"done": 0, "per_second": None, "eta_seconds": None}
    assert list(store.storage.objects(f"datasets/{dataset_of(job.id)}")) == []
    assert [stored.key for stored in store.storage.objects(f"jobs/{job.id}")] == [f"jobs/{job.id}/job.json"]
    for expected in ("0", "2", "student", "1"):
        unit = claim(ledger)
        assert unit.unit == expected
        mark(ledger, unit)
    assert claim(ledger).unit == "finish"


@pytest.mark.parametrize("redis_lost", [False, True])
def test_a_run_forgets_its_checkpoints_and_rows(ledger: Ledger, store: JobStore, redis_lost: bool) -> None:
    run = half_trained(ledger, store)
    if redis_lost:
        store.settle(store.get(run.id))
        ledger.redis.flushall()
    again = store.retry(run.id, from_beginning=True)
    assert (again.status, again.attempt, again.progress.done, again.metrics) == ("queued", 2, 0, {})
    assert store.rows(run.id) == ([], False)
    for prefix in (f"runs/{run.id}", f"models/{model_of(run.id)}"):
        assert list(store.storage.objects(prefix)) == []
    assert claim(ledger, "training").job == run.id


def test_without_it_everything_stays(ledger: Ledger, store: JobStore) -> None:
    job, run = half_made(ledger, store), half_trained(ledger, store)
    before = {stored.key for root in ("datasets", "runs", "models") for stored in store.storage.objects(root)}
    assert store.retry(job.id).progress.done == 23
    assert store.retry(run.id).progress.done == 2
    assert store.rows(run.id)[0]
    assert {s.key for root in ("datasets", "runs", "models") for s in store.storage.objects(root)} == before
    assert claim(ledger).unit == "student"


def test_what_is_complete_stays_and_is_named(ledger: Ledger, store: JobStore) -> None:
    for job, manifest in (
        (half_made(ledger, store), "datasets/ds-{}/dataset.json"),
        (half_trained(ledger, store), "models/mdl-{}/model.json"),
    ):
        key = manifest.format(job.id.partition("-")[2])
        store.storage.put(key, b"{}")
        before = {stored.key for root in ("datasets", "models") for stored in store.storage.objects(root)}
        with pytest.raises(Conflict, match=key.rpartition("/")[0]):
            store.retry(job.id, from_beginning=True)
        assert {s.key for root in ("datasets", "models") for s in store.storage.objects(root)} == before
        assert store.get(job.id).status == "failed"
        assert store.retry(job.id).status == "queued"


def test_only_what_has_ended_starts_over_and_nothing_of_another_is_touched(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    mark(ledger, claim(ledger))
    with pytest.raises(Conflict, match="only a failed or canceled job"):
        store.retry(job.id, from_beginning=True)
    assert store.storage.exists(f"datasets/{dataset_of(job.id)}/train-000000.tar")
    with pytest.raises(NotFound):
        store.retry("syn-00000000000-00000000", from_beginning=True)
    own = synthesis(store, owner="a")
    store.cancel(own.id)
    with pytest.raises(NotFound):
        store.retry(own.id, owner="b", from_beginning=True)
    assert not ledger.redis.keys("dearkd:starting-over:*")


def test_while_a_job_is_cleared_nobody_else_retries_it(ledger: Ledger, store: JobStore) -> None:
    job = half_made(ledger, store)
    ledger.redis.set(starting_over(job.id), 1)
    for from_beginning in (False, True):
        with pytest.raises(Conflict, match="under way"):
            store.retry(job.id, from_beginning=from_beginning)
    ledger.redis.delete(starting_over(job.id))
    assert store.retry(job.id, from_beginning=True).status == "queued"
