"""Two workers on one job, one of which stops in the middle and comes back too late; cancel; SIGTERM."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from dearkd.answers import JobView
from tests.support.services import eventually
from tests.support.world import SYNTHESIS, TRAINING, World, another_worker, workers

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("script", ["done", "end_job"], ids=["before the mark", "before the end"])
def test_who_comes_back_too_late_publishes_nothing(
    shared_world: World, teacher: str, undisturbed: JobView, tmp_path: Path, script: str
) -> None:
    here = shared_world
    eventually(lambda: not workers())
    here.hold_at(script)
    job = here.client.create_synthesis_job({"teacher": teacher, **SYNTHESIS}).id
    assert here.proxy.held.wait(120)
    late = here.holder(job)
    os.kill(late.horse, signal.SIGSTOP)
    try:
        with another_worker(here.settings, tmp_path):
            eventually(lambda: here.ledger.store.get(job).terminal, seconds=240)
            stored = {o.key: o.size for o in here.storage.objects(f"datasets/ds-{job.partition('-')[2]}")}
            manifest = here.storage.read(f"datasets/ds-{job.partition('-')[2]}/dataset.json")
            here.proxy.release()
            os.kill(late.horse, signal.SIGCONT)
            eventually(lambda: any("published nothing more" in line for line in here.log(job)))
    finally:
        here.proxy.release()
        with suppress(ProcessLookupError):  # it ended by itself, as it should
            os.kill(late.horse, signal.SIGCONT)
    ended = here.client.get_job(job)
    assert ended.status == "succeeded", ended.error
    assert here.shards(ended) == here.shards(undisturbed)
    assert {o.key: o.size for o in here.storage.objects(f"datasets/ds-{job.partition('-')[2]}")} == stored
    assert here.storage.read(f"datasets/ds-{job.partition('-')[2]}/dataset.json") == manifest
    eventually(lambda: not workers())


def test_two_workers_share_a_job_and_publish_it_once(
    shared_world: World, teacher: str, undisturbed: JobView, tmp_path: Path
) -> None:
    here = shared_world
    eventually(lambda: not workers())
    with another_worker(here.settings, tmp_path):
        spec = {"teacher": teacher, **SYNTHESIS, "parallelism": 2, "phases": [{"resolution": 8, "iterations": 2_000}]}
        job = here.client.create_synthesis_job(spec).id
        eventually(lambda: here.ledger.redis.zcard("dearkd:leases") == 2)
        assert len(workers()) == 2
        here.client.cancel_job(job)
        assert here.client.wait(job).status == "canceled"
        again = here.client.create_synthesis_job({"teacher": teacher, **SYNTHESIS, "parallelism": 2})
        ended = here.client.wait(again.id)
    assert ended.status == "succeeded", ended.error
    assert sorted(here.begins(ended.id)) == ["0", "1", "finish"]
    assert here.shards(ended) == here.shards(undisturbed)
    eventually(lambda: not workers())


def test_sigterm_hands_a_shard_back_without_blame(shared_world: World, teacher: str, undisturbed: JobView) -> None:
    here = shared_world
    eventually(lambda: not workers())
    job = here.client.create_synthesis_job({"teacher": teacher, **SYNTHESIS}).id
    eventually(lambda: here.client.get_job(job).metrics.get("iteration", 0) > 0)
    os.kill(here.holder(job).supervisor, signal.SIGTERM)
    ended = here.client.wait(job)
    assert (ended.status, ended.attempt) == ("succeeded", 1), ended.error
    assert any("goes back: the worker was asked to end" in line for line in here.log(job))
    assert here.shards(ended) == here.shards(undisturbed)


def test_cancel_leaves_no_process_and_no_dataset(shared_world: World, teacher: str) -> None:
    here, client = shared_world, shared_world.client
    eventually(lambda: not workers())
    endless = {"teacher": teacher, **SYNTHESIS, "phases": [{"resolution": 8, "iterations": 50_000}]}
    running = client.create_synthesis_job(endless).id
    eventually(lambda: client.get_job(running).metrics.get("iteration", 0) > 0)
    queued = client.create_synthesis_job(endless).id  # while the only worker makes the first job's shard
    blocked = client.create_training_run({"dataset": running, **TRAINING}).id
    for job, state in ((blocked, "blocked"), (queued, "queued"), (running, "running")):
        assert client.get_job(job).status == state
        client.cancel_job(job)
        assert client.wait(job).status == "canceled"
        moments = {e.data["status"]: e.at for e in client.list_events(job) if e.type == "status"}
        asked = moments.get("canceling", moments["canceled"])
        assert (moments["canceled"] - asked).total_seconds() <= 30
        if job != running:
            assert client.get_job(running).status == "running", "the others go on"
    eventually(lambda: not workers())
    assert here.ledger.redis.zcard("dearkd:leases") == 0
    for job in (running, queued):
        assert not here.storage.exists(f"datasets/ds-{job.partition('-')[2]}/dataset.json")


def test_a_cancel_whose_worker_dies_ends_all_the_same(shared_world: World, teacher: str) -> None:
    here, client = shared_world, shared_world.client
    eventually(lambda: not workers())
    endless = {"teacher": teacher, **SYNTHESIS, "phases": [{"resolution": 8, "iterations": 50_000}]}
    job = client.create_synthesis_job(endless).id
    eventually(lambda: client.get_job(job).metrics.get("iteration", 0) > 0)
    horse = here.holder(job).horse
    os.kill(horse, signal.SIGSTOP)
    assert client.cancel_job(job).status == "canceling"
    os.kill(horse, signal.SIGKILL)
    assert client.wait(job).status == "canceled"
    eventually(lambda: not workers())
    assert here.begins(job) == ["0"]
