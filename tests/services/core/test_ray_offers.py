"""Runs on a Ray cluster beside trainers without Ray: who cannot drive one leaves it to those that can."""

import json
import time

import pytest

from dearkd import extras
from dearkd.errors import DearKDError
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job
from dearkd.jobs.offers import Needs, advertise, offers
from dearkd.jobs.queue import queue
from dearkd.redis_client import job_key
from dearkd.settings import Settings
from dearkd.specs import TrainingSpec
from dearkd.work.own_offer import own_offer
from dearkd_trainer.service.ray_group import require_ray
from tests.services.core.test_mixed_fleets import DRIVER, GPU, SMALL_CPU, waiting
from tests.support.specs import FACTS, TEACHER, training_spec


def on_ray(ledger: Ledger, **more: object) -> Job:
    posted = {"dataset": "ds", "engine": "ray", "processes": 16, **more}
    spec = TrainingSpec.resolve(posted, FACTS, TEACHER, on_ray=True)
    return ledger.store.create_training(spec, epochs=1, waits_for=None)


def test_a_run_on_ray_is_left_to_workers_that_can_drive_it_and_says_where_there_is_none(ledger: Ledger) -> None:
    run = on_ray(ledger)
    advertise(ledger.redis, "train", SMALL_CPU)
    ledger.offer = SMALL_CPU
    assert ledger.claim("training", 60.0) is None
    queue(ledger.redis, "train").empty()
    ledger.reap(max_deaths=3)
    assert waiting(ledger, run.id) == (
        "a worker with Ray, for `engine` (DEARKD_RAY_ADDRESS and the extra `ray`, on a node of the cluster): those "
        "there are have no GPU, 8.0 GiB, no compiler and no Ray"
    )
    assert queue(ledger.redis, "train").count == 0
    advertise(ledger.redis, "train", DRIVER)
    ledger.reap(max_deaths=3)
    assert waiting(ledger, run.id) is None
    assert queue(ledger.redis, "train").count == 1
    ledger.offer = DRIVER
    found = ledger.claim("training", 60.0)
    assert found is not None
    assert found.job == run.id


def test_older_workers_offer_no_ray_and_leave_such_a_run_alone(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would fail it."""
    theirs = GPU.model_dump(exclude={"ray"})
    ledger.redis.zadd("dearkd:offers:train", {json.dumps(theirs): time.time()})
    assert offers(ledger.redis, "train") == [GPU]
    run = on_ray(ledger)
    assert not GPU.fits(Needs.of_spec(run.spec))
    ledger.offer = DRIVER
    with monkeypatch.context() as before:
        before.setattr(Job, "newest", 3)
        assert ledger.claim("training", 60.0) is None
    assert "a worker of a newer version" in (waiting(ledger, run.id) or "")


def test_a_run_on_ray_that_an_older_api_accepted_is_left_to_workers_with_ray_too(ledger: Ledger) -> None:
    older, local = on_ray(ledger), ledger.store.create_training(training_spec("ds"), epochs=1, waits_for=None)
    damaged = ledger.store.create_training(training_spec("ds"), epochs=1, waits_for=None)
    for run in (older, local, damaged):
        ledger.redis.hdel(job_key(run.id), "ray")
        ledger.redis.hset(job_key(run.id), "schema_version", 3)
    ledger.redis.hset(job_key(damaged.id), "spec", "{")
    ledger.offer = SMALL_CPU
    taken = [ledger.claim("training", 60.0) for _ in range(3)]
    assert [claim and claim.job for claim in taken] == [local.id, damaged.id, None]
    advertise(ledger.redis, "train", SMALL_CPU)
    ledger.reap(max_deaths=3)
    assert "a worker with Ray" in (waiting(ledger, older.id) or "")
    ledger.offer = DRIVER
    found = ledger.claim("training", 60.0)
    assert found is not None
    assert found.job == older.id


def test_a_worker_offers_ray_where_it_knows_a_cluster_and_has_the_package(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = settings.model_copy(update={"ray_address": "127.0.0.1:6379"})
    there = {"ray"}
    monkeypatch.setattr(extras, "_is_there", lambda name: name in there)
    for module in extras.modules_of("ray"):
        there.add(module)
    assert [own_offer(each).ray for each in (settings, known)] == [False, True]
    there.clear()
    assert not own_offer(known).ray
    for asked, code in ((settings, "engine_unavailable"), (known, "not_installed")):
        with pytest.raises(DearKDError) as caught:  # a worker that is handed a run all the same
            require_ray(asked)
        assert caught.value.code == code
