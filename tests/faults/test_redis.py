"""Redis dies, is away for a while, or comes back empty."""

import time
from typing import Any

import httpx
import pytest

from dearkd.answers import JobView
from dearkd.errors import Unavailable
from dearkd.local.doctor import check_jobs
from dearkd.local.findings import Finding
from tests.support.services import eventually
from tests.support.world import SYNTHESIS, TRAINING, World, workers

pytestmark = pytest.mark.timeout(900)

OUTAGE_SECONDS = 20
"""More than three leases of 6 s: longer than a lease, a death that is blamed (5 s) and rq's pauses (5 s) together."""


def test_redis_is_killed_and_started_again_in_mid_job(shared_world: World, teacher: str, undisturbed: JobView) -> None:
    here = shared_world
    job = here.client.create_synthesis_job({"teacher": teacher, **SYNTHESIS}).id
    eventually(lambda: here.client.get_job(job).metrics.get("iteration", 0) > 0)
    here.redis.kill()
    here.redis.start()
    ended = here.client.wait(job)
    assert ended.status == "succeeded", ended.error
    assert here.shards(ended) == here.shards(undisturbed)


def test_an_outage_is_answered_at_once_and_costs_no_work(
    shared_world: World, teacher: str, undisturbed: JobView, undisturbed_run: JobView
) -> None:
    here = shared_world
    eventually(lambda: not workers())
    # So that the run is not at its end before the outage.
    here.hold_at("add_row", skip=1)
    run = here.client.create_training_run({"dataset": undisturbed.result["dataset"], **TRAINING}).id
    assert here.proxy.held.wait(300)
    long = {**SYNTHESIS, "images_per_class": 2, "phases": [{"resolution": 8, "iterations": 100}]}
    job = here.client.create_synthesis_job({"teacher": teacher, **long}).id
    eventually(lambda: here.client.get_job(job).metrics.get("iteration", 0) > 0)
    jobs = {stored.key for stored in here.storage.objects("jobs")}
    with here.proxy.down(), httpx.Client(base_url=here.tree.url, trust_env=False, timeout=10) as http:
        here.proxy.release(forward=False)
        for _ in range(3):
            refused = http.post("/v1/synthesis-jobs", json={"teacher": teacher, **SYNTHESIS})
            assert (refused.status_code, refused.json()["code"]) == (503, "redis_unavailable")
            assert int(refused.headers["retry-after"]) > 0
        assert http.get(f"/v1/training-runs/{run}").status_code == 503
        assert http.get("/readyz").status_code == 503
        assert http.get("/healthz").status_code == 200
        for served in ("/v1/teachers", "/v1/datasets", "/v1/models"):
            assert http.get(served).json()["data"], served
        time.sleep(OUTAGE_SECONDS)
    assert {stored.key for stored in here.storage.objects("jobs")} - jobs <= {
        f"jobs/{identifier}/{name}" for identifier in (job, run) for name in ("log.txt", "final.json")
    }
    for identifier, units in ((run, ["run"]), (job, ["0", "finish"])):
        ended = here.client.wait(identifier)
        assert ended.status == "succeeded", ended.error
        assert here.begins(identifier) == units, "the horse that was at work went on through the outage"
    rows = [
        [(row.epoch, row.figures["loss"]) for row in here.client.list_metrics(i)] for i in (run, undisturbed_run.id)
    ]
    assert rows[0] == rows[1]


def doctor(here: World, *, resubmit: bool = False) -> Finding:
    (found,) = check_jobs(here.settings.model_copy(update={"url": here.tree.url}), resubmit=resubmit)
    return found


def test_an_emptied_redis_loses_no_result_and_the_doctor_brings_back_what_had_not_ended(
    shared_world: World, plain_teacher: Any, teacher: str, undisturbed: JobView, undisturbed_run: JobView
) -> None:
    here, client = shared_world, shared_world.client
    eventually(lambda: not workers())
    job = client.create_synthesis_job({"teacher": teacher, **SYNTHESIS}).id
    run = client.create_training_run({"dataset": job, **TRAINING}).id
    eventually(lambda: client.get_job(job).metrics.get("iteration", 0) > 0)
    here.ledger.redis.flushall()
    assert teacher in {found.id for found in client.list_teachers()}
    assert undisturbed.result["dataset"] in {found.id for found in client.list_datasets()}
    assert undisturbed_run.result["model"] in {found.id for found in client.list_models()}
    lost = doctor(here)
    assert lost.state == "problem"
    assert job in lost.detail
    assert run in lost.detail
    assert "--resubmit" in lost.remedy
    assert doctor(here, resubmit=True).state == "ok"
    made = client.wait(job)
    assert made.status == "succeeded", made.error
    assert here.shards(made) == here.shards(undisturbed)
    trained = client.wait(run)
    assert trained.status == "succeeded", trained.error
    rows = [[row.figures["loss"] for row in client.list_metrics(i)] for i in (run, undisturbed_run.id)]
    assert rows[0] == rows[1]
    assert doctor(here).state == "ok"
    spec, weights = plain_teacher

    def uploads_are_taken() -> bool:
        """Once the inspector has given its next sign of life, within half a minute; before, 503 says so."""
        try:
            client.create_teacher(spec, weights)
        except Unavailable:
            return False
        return True

    eventually(uploads_are_taken)
