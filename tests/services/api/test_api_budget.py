"""Budgets of synthesis jobs over HTTP: what they come to, what bad ones get, and what a job tells that ended early."""

from typing import Any

import pytest

from dearkd.client import Client
from dearkd.jobs.ledger import Ledger
from dearkd.specs import SynthesisRequest
from dearkd.specs.budget import BudgetSpec, EndedEarly
from tests.support.api_contents import claim, pointers, put_teacher
from tests.support.ledger_steps import make_shard
from tests.support.pages import get
from tests.support.services import Api

pytestmark = pytest.mark.services

JOBS = "/v1/synthesis-jobs"
PHASES = [{"resolution": 16, "iterations": 200}]

TABLE: list[tuple[str, dict[str, Any], list[str], str]] = [
    ("none of the two", {"budget": {}}, ["/budget"], "exactly one of the two"),
    ("both", {"budget": {"teacher_passes": 10**5, "minutes": 5}}, ["/budget"], "exactly one of the two"),
    ("no object", {"budget": "30m"}, ["/budget"], "should be"),
    ("an unknown bound", {"budget": {"hours": 2}}, ["/budget/hours"], "unknown field"),
    ("no passes", {"budget": {"teacher_passes": 0}}, ["/budget/teacher_passes"], "greater than or equal to 1"),
    ("half a pass", {"budget": {"teacher_passes": 1000.5}}, ["/budget/teacher_passes"], "integer"),
    ("a text", {"budget": {"teacher_passes": "2M"}}, ["/budget/teacher_passes"], "integer"),
    ("no time", {"budget": {"minutes": 0}}, ["/budget/minutes"], "greater than 0"),
    ("a time without end", {"budget": {"minutes": 1e308}}, ["/budget/minutes"], "less than or equal to 5256000"),
    ("passes without end", {"budget": {"teacher_passes": 10**400}}, ["/budget/teacher_passes"], "less than"),
    ("digits without end", {"images_per_class": 10**4299}, [""], "1000 are the most"),
    ("no points", {"budget": {"minutes": 5, "stop_below": 0}}, ["/budget/stop_below"], "greater than 0"),
    ("too many", {"budget": {"minutes": 5, "stop_below": 101}}, ["/budget/stop_below"], "less than or equal to 100"),
    ("a stop alone", {"budget": {"stop_below": 1}}, ["/budget"], "exactly one of the two"),
    ("beside iterations", {"budget": {"minutes": 5}, "phases": PHASES}, ["/budget"], "leave out phases"),
    ("the same", {"budget": {"teacher_passes": 10**5}, "phases": PHASES}, ["/budget"], "leave out phases"),
    ("too small for an image", {"budget": {"teacher_passes": 249}}, ["/budget/teacher_passes"], "take 250: give at"),
    (
        "too small for these",
        {"budget": {"teacher_passes": 5000}, "images_per_class": 30},
        ["/budget/teacher_passes"],
        "take 7500: give at least that, or set images_per_class to 20",
    ),
    ("too large", {"budget": {"teacher_passes": 10**9}}, ["/budget/teacher_passes"], "give at most 200000"),
    ("more images than allowed", {"budget": {"minutes": 5}, "images_per_class": 201}, ["/images_per_class"], "allows"),
    ("beside its own student", {"budget": {"minutes": 5}, "weights": {"adaptive": 1}}, ["/budget"], "name an adaptive"),
    ("rounds of nothing", {"rounds": 0}, ["/rounds"], "greater than or equal to 1"),
    ("more rounds than images", {"images_per_class": 3, "rounds": 4}, ["/rounds"], "set at most that"),
    ("with others", {"budget": {}, "seed": -1}, ["/budget", "/seed"], "exactly one"),
]


@pytest.mark.parametrize(("fields", "where", "remedy"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_bad_budget_is_refused_with_a_pointer_and_a_remedy(
    api: Api, fields: dict[str, Any], where: list[str], remedy: str
) -> None:
    body = {"teacher": put_teacher(api), **fields}
    for parameters in ({}, {"dry_run": "true"}):
        answer = api.http.post(JOBS, json=body, params=parameters)
        assert answer.status_code == 422, answer.text
        assert sorted(pointers(answer)) == where
        assert remedy in str(answer.json()["errors"])
    assert api.http.get(JOBS).json()["data"] == []


def test_a_dry_run_shows_what_a_budget_comes_to_and_its_answer_may_be_posted(api: Api) -> None:
    teacher = put_teacher(api)

    def plan(**fields: Any) -> dict[str, Any]:
        answer = api.http.post(JOBS, json={"teacher": teacher, **fields}, params={"dry_run": "true"})
        assert answer.status_code == 200, answer.text
        again = api.http.post(JOBS, json=answer.json()["spec"], params={"dry_run": "true"})
        assert again.json() == answer.json()
        return dict(answer.json())

    passes = plan(budget={"teacher_passes": 100_000})
    assert passes["spec"]["budget"] == {"teacher_passes": 100_000}
    assert [phase["iterations"] for phase in passes["spec"]["phases"]] == [100]
    assert passes["spec"]["images_per_class"] == 100
    assert (passes["teacher_passes"], passes["images"], passes["least_images"]) == (100_000, 1000, 1000)
    assert plan(budget={"teacher_passes": 50_000})["forecasts"] == [], "two rounds are too few"
    small = plan(budget={"teacher_passes": 1_500})
    assert (small["spec"]["images_per_class"], small["spec"]["phases"][0]["iterations"]) == (3, 50)
    minutes = plan(budget={"minutes": 5})
    assert minutes["spec"]["budget"] == {"minutes": 5}
    assert (minutes["spec"]["images_per_class"], minutes["spec"]["rounds"]) == (200, 10), (
        "as many as this server allows"
    )
    assert (minutes["images"], minutes["least_images"]) == (2000, 200)
    assert minutes["forecasts"] == [400, 800, 1600]
    stops = plan(budget={"teacher_passes": 200_000, "stop_below": 0.5})
    assert stops["spec"]["budget"] == {"teacher_passes": 200_000, "stop_below": 0.5}
    assert (stops["images"], stops["least_images"], stops["forecasts"]) == (2000, 200, [400, 800, 1600])
    assert plan(budget=None) == plan()


def test_the_typed_client_carries_a_budget(api: Api) -> None:
    teacher = put_teacher(api)
    asked = SynthesisRequest(teacher=teacher, budget=BudgetSpec(minutes=2.5))
    with Client(api.url) as client:
        first = client.create_synthesis_job(asked)
        second = client.create_synthesis_job(teacher=teacher, budget={"minutes": 2.5})
        assert client.plan_synthesis_job(asked).least_images == 200
    assert first.spec == second.spec
    assert first.spec["budget"] == {"minutes": 2.5}
    assert first.synthesis_spec.budget == asked.budget


def test_a_job_that_ended_early_says_so_and_a_run_that_waits_for_it_fits_what_is_certain(api: Api) -> None:
    body = {"teacher": put_teacher(api), "images_per_class": 100, "budget": {"minutes": 5}}
    job = api.http.post(JOBS, json=body).json()
    run = api.http.post("/v1/training-runs", json={"dataset": job["id"]})
    assert run.status_code == 202, run.text
    assert run.json()["status"] == "blocked"
    assert run.json()["spec"]["batch_size"] <= 200, "the first round is all that is certain"
    wide = api.http.post("/v1/training-runs", json={"dataset": job["id"], "batch_size": 500})
    assert pointers(wide) == ["/batch_size"]

    ledger, ended = Ledger(api.store), EndedEarly(reason="budget", planned=1000, made=200, detail="time is up")
    ledger.done(claim(api), make_shard(0, 200))
    assert ledger.conclude(claim(api), "1", ended)
    assert api.http.get(f"{JOBS}/{job['id']}").json()["progress"]["total"] == 1000
    last = claim(api)
    assert last.unit == "finish"
    ledger.complete(last, {"dataset": "ds-x", "ended_early": ended.model_dump()}, total=200)
    assert "time is up" in get(api, f"/jobs/{job['id']}").text
    assert 'href="/datasets/ds-x"' in get(api, "/").text, "what ended it is none of the things that it made"
    get(api, "/?view=lineage")
    seen = api.http.get(f"{JOBS}/{job['id']}").json()
    assert seen["status"] == "succeeded"
    assert seen["result"] == {
        "dataset": "ds-x",
        "ended_early": {"reason": "budget", "planned": 1000, "made": 200, "detail": "time is up"},
    }
    assert (seen["progress"]["done"], seen["progress"]["total"]) == (200, 200)
    assert seen["links"]["dataset"] == "/v1/datasets/ds-x"
    assert "ended_early" not in seen["links"]
    assert api.http.get(f"/v1/training-runs/{run.json()['id']}").json()["status"] == "queued"
