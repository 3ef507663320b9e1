"""Pause and resume, priority, labels and filters, and the bound on running time."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import JobError
from tests.support.api_contents import claim, finish_synthesis, pointers, post_synthesis, put_dataset, put_teacher
from tests.support.services import Api

pytestmark = pytest.mark.services

JOBS, RUNS = "/v1/synthesis-jobs", "/v1/training-runs"
PLAIN = {"stage_one": {"distillation": "none", "weights": {"hidden": 0}}}


TOO_MANY = {f"key{number}": "" for number in range(65)}


def act(api: Api, job: str, action: str, body: Any = None) -> httpx.Response:
    return api.http.post(f"{JOBS if job.startswith('syn') else RUNS}/{job}/{action}", json=body)


def listed(api: Api, **query: str) -> list[str]:
    answer = api.http.get(JOBS, params=query)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


def test_a_paused_job_takes_no_worker_until_it_is_resumed(api: Api, tmp_path: Path) -> None:
    job = post_synthesis(api)["id"]
    paused = act(api, job, "pause")
    assert (paused.status_code, paused.json()["status"]) == (202, "paused")
    assert act(api, job, "pause").json()["status"] == "paused"
    assert Ledger(api.store).claim("synthesis", 60) is None
    assert listed(api, status="paused") == [job]
    assert act(api, job, "resume").json()["status"] == "queued"
    again = act(api, job, "resume")
    assert (again.status_code, "queued" in again.json()["detail"]) == (409, True)
    finish_synthesis(api, api.http.get(f"{JOBS}/{job}").json(), tmp_path)
    assert act(api, job, "pause").status_code == 409


def test_a_running_job_that_is_paused_gets_its_unit_back(api: Api) -> None:
    job = post_synthesis(api)["id"]
    ledger, unit = Ledger(api.store), claim(api)
    assert act(api, job, "pause").json()["status"] == "paused"
    assert ledger.beat(unit, 60) == "paused", "so the worker hears of it"
    assert act(api, job, "resume").json()["status"] == "running", "it had not let go yet"
    act(api, job, "pause")
    ledger.release(unit)
    assert api.http.get(f"{JOBS}/{job}").json()["status"] == "paused"
    act(api, job, "resume")
    assert claim(api).unit == unit.unit


def test_a_paused_job_can_be_canceled(api: Api) -> None:
    waiting, running = post_synthesis(api)["id"], None
    act(api, waiting, "pause")
    assert act(api, waiting, "cancel").json()["status"] == "canceled"
    running = post_synthesis(api)["id"]
    unit = claim(api)
    act(api, running, "pause")
    assert act(api, running, "cancel").json()["status"] == "canceling"
    Ledger(api.store).release(unit)
    assert api.http.get(f"{JOBS}/{running}").json()["status"] == "canceled"


@pytest.mark.parametrize("ends", ["succeeds", "fails"])
def test_a_run_that_was_paused_while_it_waited(api: Api, tmp_path: Path, ends: str) -> None:
    job = post_synthesis(api)
    run = api.http.post(RUNS, json={"dataset": job["id"], **PLAIN}).json()
    assert run["status"] == "blocked"
    assert act(api, run["id"], "pause").json()["status"] == "paused"
    assert act(api, run["id"], "resume").json()["status"] == "blocked"
    act(api, run["id"], "pause")
    if ends == "fails":
        act(api, job["id"], "cancel")
        assert api.http.get(f"{RUNS}/{run['id']}").json()["status"] == "paused"
        dead = act(api, run["id"], "resume")
        assert (dead.status_code, dead.json()["code"]) == (409, "dataset_failed")
        return
    finish_synthesis(api, job, tmp_path)
    assert act(api, run["id"], "resume").json()["status"] == "queued"
    assert Ledger(api.store).claim("training", 60) is not None


def test_the_priority_of_a_job_that_waits_can_be_changed(api: Api) -> None:
    first, second = post_synthesis(api)["id"], post_synthesis(api)["id"]
    changed = act(api, second, "priority", {"priority": "high"})
    assert (changed.status_code, changed.json()["spec"]["priority"]) == (202, "high")
    assert claim(api).job == second
    act(api, first, "cancel")
    assert act(api, first, "priority", {"priority": "low"}).status_code == 409
    for body, pointer in [({"priority": "urgent"}, "/priority"), ({}, "/priority"), ({"x": 1}, "/x")]:
        answer = act(api, second, "priority", body)
        assert (answer.status_code, pointer in pointers(answer)) == (422, True)


def test_jobs_are_found_by_labels_status_and_time(api: Api) -> None:
    teacher = put_teacher(api)

    def post(**labels: str) -> str:
        answer = api.http.post(JOBS, json={"teacher": teacher, "images_per_class": 2, "labels": labels})
        assert (answer.status_code, answer.json()["spec"]["labels"]) == (202, labels), answer.text
        return str(answer.json()["id"])

    ours = [post(team="vision", round=str(number % 2)) for number in range(7)]
    theirs = [post(team="sound"), post()]
    newest = ours[::-1]
    assert listed(api, labels="team=vision") == newest
    assert listed(api, labels="team=vision,round=1") == newest[1::2]
    assert listed(api, labels="team=sound") == theirs[:1]
    assert listed(api, labels="team=none") == []
    assert listed(api, labels="team=vision,team=sound") == []
    page = api.http.get(JOBS, params={"labels": "team=vision", "limit": 3}).json()
    assert (page["has_more"], [job["id"] for job in page["data"]]) == (True, newest[:3])
    rest = api.http.get(JOBS, params={"labels": "team=vision", "limit": 4, "after": newest[2]}).json()
    assert (rest["has_more"], [job["id"] for job in rest["data"]]) == (False, newest[3:])
    act(api, ours[0], "cancel")
    assert listed(api, labels="team=vision", status="canceled") == ours[:1]
    now = datetime.now(UTC)
    for moment, after in [(now + timedelta(hours=1), False), (now - timedelta(hours=1), True)]:
        found = listed(api, created_after=moment.isoformat(), labels="round=1")
        assert found == (newest[1::2] if after else [])
        found = listed(api, created_before=moment.isoformat(), labels="round=1")
        assert found == ([] if after else newest[1::2])
    created = api.http.get(f"{JOBS}/{ours[3]}").json()["created_at"]
    assert ours[4] in listed(api, created_after=created)
    assert ours[2] not in listed(api, created_after=created)


@pytest.mark.parametrize(
    "query",
    [
        {"labels": "team"},
        {"labels": "team=a,"},
        {"created_after": "0.5"},
        {"labels": "=x"},
        {"created_after": "yesterday"},
        {"created_before": "2026-01-01T00:00:00"},
    ],
)
def test_what_is_no_filter_is_refused(api: Api, query: dict[str, str]) -> None:
    answer = api.http.get(JOBS, params=query)
    assert (answer.status_code, pointers(answer)) == (422, [f"/{next(iter(query))}"]), answer.text


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"a b": "x"},
        {"x" * 64: "x"},
        {"x": "y" * 201},
        {"x": "a,b"},
        {"x": "a\nb"},
        {"x": 3},
        ["x"],
        {f"key{number}": "" for number in range(65)},
    ],
)
def test_what_are_no_labels_are_refused(api: Api, labels: Any) -> None:
    answer = api.http.post(JOBS, json={"teacher": put_teacher(api), "labels": labels})
    assert answer.status_code == 422
    assert all(pointer.startswith("/labels") for pointer in pointers(answer)), answer.text


def test_a_job_that_runs_for_too_long_fails_and_time_that_it_waited_does_not_count(api: Api, tmp_path: Path) -> None:
    teacher = put_teacher(api)
    ledger = Ledger(api.store)
    body = {"teacher": teacher, "images_per_class": 2, "timeout_seconds": 0.4}
    job = api.http.post(JOBS, json=body).json()["id"]
    time.sleep(0.5)
    unit = claim(api)
    act(api, job, "pause")
    ledger.release(unit)
    time.sleep(0.5)
    ledger.reap(max_deaths=3)
    act(api, job, "resume")
    unit = claim(api)
    ledger.reap(max_deaths=3)
    assert api.http.get(f"{JOBS}/{job}").json()["status"] == "running", "it has hardly run yet"
    time.sleep(0.5)
    ledger.reap(max_deaths=3)
    failed = api.http.get(f"{JOBS}/{job}").json()
    assert (failed["status"], failed["error"]["code"], failed["error"]["retryable"]) == ("failed", "timed_out", True)
    assert "0.4 s" in failed["error"]["message"]
    assert act(api, job, "retry").json()["status"] == "queued"
    claim(api)
    ledger.reap(max_deaths=3)
    assert api.http.get(f"{JOBS}/{job}").json()["status"] == "running", "a new attempt has its own time"
    for wrong in (0, -1, "1"):
        refused = api.http.post(RUNS, json={"dataset": put_dataset(api, tmp_path), "timeout_seconds": wrong})
        assert "/timeout_seconds" in pointers(refused)


@pytest.mark.parametrize("route", [JOBS, RUNS])
def test_a_job_that_is_to_be_tried_again_shows_when_and_why(api: Api, tmp_path: Path, route: str) -> None:
    body = {"teacher": put_teacher(api)} if route == JOBS else {"dataset": put_dataset(api, tmp_path), **PLAIN}
    for wrong in (-1, 11, 1.5, "1", True, None):
        assert pointers(api.http.post(route, json=body | {"max_retries": wrong})) == ["/max_retries"], wrong
    assert api.http.post(route, json=body).json()["spec"]["max_retries"] == 0
    job = api.http.post(route, json=body | {"max_retries": 1, "priority": "high"}).json()
    assert (job["spec"]["max_retries"], job["retry_at"]) == (1, None)
    unit = claim(api, job["kind"])
    assert unit.job == job["id"]
    error = {"code": "disk_full", "message": "no room is left", "retryable": True}
    Ledger(api.store).fail(job["id"], JobError(**error), unit)
    shown = api.http.get(job["links"]["self"]).json()
    assert (shown["status"], shown["attempt"], shown["error"]) == ("queued", 2, error)
    assert datetime.now(UTC) < datetime.fromisoformat(shown["retry_at"]) < datetime.now(UTC) + timedelta(seconds=11)
    told = api.http.get(job["links"]["events"]).json()["data"][-1]
    assert told["type"] == "status"
    assert datetime.fromisoformat(told["data"]["retry_at"]) == datetime.fromisoformat(shown["retry_at"])
    assert act(api, job["id"], "retry").status_code == 409, "it is tried again anyway"
    assert act(api, job["id"], "cancel").json()["status"] == "canceled"
