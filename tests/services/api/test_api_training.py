"""Training runs over HTTP: what they refer to, what they wait for, their metrics."""

import json
from pathlib import Path
from typing import Any

import pytest

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import JobError
from dearkd.storage.catalog import teachers
from tests.support.api_contents import (
    claim,
    finish_synthesis,
    pointers,
    post_synthesis,
    put_dataset,
    put_model,
    put_teacher,
)
from tests.support.services import Api

pytestmark = pytest.mark.services

RUNS = "/v1/training-runs"
NO_DISTILLATION = {"stage_one": {"distillation": "none", "weights": {"hidden": 0}}}


def synthetic(api: Api, tmp_path: Path, **fields: Any) -> str:
    """A finished dataset of a teacher of ours."""
    spec = {"teacher": put_teacher(api), "flip": 0.0}
    return put_dataset(api, tmp_path, teacher=spec["teacher"], spec=spec, **fields)


def test_a_minimal_run_on_a_finished_dataset_is_queued(api: Api, tmp_path: Path) -> None:
    dataset = synthetic(api, tmp_path)
    answer = api.http.post(RUNS, json={"dataset": dataset})
    run = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"{RUNS}/{run['id']}")
    assert (run["kind"], run["status"], run["attempt"]) == ("training", "queued", 1)
    assert run["spec"]["dataset"] == dataset
    assert run["spec"]["teacher"] == api.http.get(f"/v1/datasets/{dataset}").json()["teacher"]
    epochs = run["spec"]["stage_one"]["epochs"] + run["spec"]["stage_two"]["epochs"]
    assert run["progress"] == {"done": 0, "total": epochs, "unit": "epochs", "per_second": None, "eta_seconds": None}
    assert api.http.get(run["links"]["metrics"]).json() == {"data": [], "has_more": False}
    assert [job["id"] for job in api.http.get(RUNS, params={"status": "queued"}).json()["data"]] == [run["id"]]


def test_a_dry_run_creates_nothing(api: Api, tmp_path: Path) -> None:
    body = {"dataset": synthetic(api, tmp_path), "batch_size": 30, "holdout": 0.1, "fraction": 0.5}
    plan = api.http.post(RUNS, params={"dry_run": "1"}, json=body)
    assert plan.status_code == 200
    epochs = plan.json()["epochs"]
    assert (plan.json()["images"], plan.json()["steps"]) == (180, epochs * 6)
    assert plan.json()["spec"]["dataset"] == body["dataset"]
    assert api.http.get(RUNS).json()["data"] == []
    assert api.storage.children("jobs") == []


def test_a_dry_run_counts_the_images_that_a_small_fraction_keeps(api: Api, tmp_path: Path) -> None:
    for dataset in (synthetic(api, tmp_path, images=40), post_synthesis(api, images_per_class=4)["id"]):
        body = {"dataset": dataset, "fraction": 0.01, "stage_one": {"epochs": 1}, "stage_two": {"epochs": 1}}
        plan = api.http.post(RUNS, params={"dry_run": "1"}, json=body).json()
        assert (plan["images"], plan["spec"]["batch_size"], plan["steps"]) == (10, 1, 20)


def test_a_run_waits_for_its_dataset_and_keeps_the_job_as_posted(api: Api, tmp_path: Path) -> None:
    job = post_synthesis(api, images_per_class=40, shard_samples=200)
    run = api.http.post(RUNS, json={"dataset": job["id"]}).json()
    assert (run["status"], run["spec"]["dataset"], run["spec"]["teacher"]) == (
        "blocked",
        job["id"],
        job["spec"]["teacher"],
    )
    assert run["spec"]["student"]["image_size"] == 32
    assert run["spec"]["stage_one"]["distillation"] == "soft"
    finish_synthesis(api, job, tmp_path)
    assert api.http.get(f"{RUNS}/{run['id']}").json()["status"] == "queued"
    late = api.http.post(RUNS, json={"dataset": job["id"]}).json()
    assert (late["status"], late["spec"]["dataset"]) == ("queued", job["id"])


def test_runs_of_a_failed_or_canceled_job(api: Api) -> None:
    job = post_synthesis(api, images_per_class=40)
    run = api.http.post(RUNS, json={"dataset": job["id"]}).json()["id"]
    Ledger(api.store).fail(job["id"], JobError(code="diverged", message="nan", retryable=True), claim(api))
    failed = api.http.get(f"{RUNS}/{run}").json()
    assert (failed["status"], failed["error"]["code"], failed["error"]["retryable"]) == (
        "failed",
        "dataset_failed",
        True,
    )
    for answer in (
        api.http.post(RUNS, json={"dataset": job["id"]}),
        api.http.post(RUNS, params={"dry_run": "true"}, json={"dataset": job["id"]}),
        api.http.post(f"{RUNS}/{run}/retry"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "dataset_failed")
    assert api.http.post(f"/v1/synthesis-jobs/{job['id']}/retry").status_code == 202
    assert api.http.post(f"{RUNS}/{run}/retry").json()["status"] == "blocked"
    assert api.http.post(f"{RUNS}/{run}/cancel").json()["status"] == "canceled"


def test_a_dataset_whose_job_redis_forgot_can_be_trained_on_by_either_name(api: Api, tmp_path: Path) -> None:
    job = post_synthesis(api)
    dataset = finish_synthesis(api, job, tmp_path)
    api.store.redis.flushdb()
    for name in (job["id"], dataset):
        answer = api.http.post(RUNS, json={"dataset": name})
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dataset": None, "bogus": 1}, ["/dataset", "/bogus"]),
        ({"dataset": "ds-00000000000-00000000"}, ["/dataset"]),
        ({"dataset": "syn-00000000000-00000000", "eval_dataset": "x"}, ["/dataset", "/eval_dataset"]),
        ({"dataset": "datasets/x"}, ["/dataset"]),
        ({"dataset": ["x"]}, ["/dataset"]),
        ({"teacher": "tch-00000000000-00000000"}, ["/teacher"]),
        ({"teacher": 1, "seed": 1, "bogus": 2}, ["/teacher", "/bogus"]),
        ({"eval_dataset": "ds-00000000000-00000000"}, ["/eval_dataset"]),
        ({"eval_dataset": "ds-00000000000-00000000", "batch_size": 0}, ["/eval_dataset", "/batch_size"]),
        ({"stage_two": {"distillation": "soft"}, "epochs": 3}, ["/stage_two/distillation", "/epochs"]),
        ({"student": {"architecture": "vit"}}, ["/student/architecture"]),
        ({"fraction": 0}, ["/fraction"]),
        ({"init": "mdl-00000000000-00000000"}, ["/init"]),
        ({"init": 3, "seed": -1}, ["/init", "/seed"]),
        ({"batch_size": 401}, ["/batch_size"]),
        ({"processes": 8, "batch_size": 8}, ["/batch_size"]),
        ({"processes": 8, "holdout": 0.99}, ["/holdout"]),
        ({"augmentation": {"aa": "rand-m9-x5"}}, ["/augmentation/aa"]),
    ],
)
def test_a_bad_spec_is_refused_with_pointers_and_nothing_is_created(
    api: Api, tmp_path: Path, change: dict[str, Any], expected: list[str]
) -> None:
    answer = api.http.post(RUNS, json={"dataset": synthetic(api, tmp_path)} | change)
    assert (answer.status_code, set(pointers(answer))) == (422, set(expected))
    assert api.http.get(RUNS).json()["data"] == []
    assert api.storage.children("jobs") == []


def test_an_engine_that_is_not_built_in_has_a_code_of_its_own(api: Api, tmp_path: Path) -> None:
    answer = api.http.post(RUNS, json={"dataset": synthetic(api, tmp_path), "engine": "ray"})
    assert (answer.status_code, answer.json()["code"], pointers(answer)) == (422, "engine_unavailable", ["/engine"])


def test_evaluation_is_on_the_same_classes_and_channels(api: Api, tmp_path: Path) -> None:
    dataset = synthetic(api, tmp_path)
    for other in (put_dataset(api, tmp_path, num_classes=3),):
        answer = api.http.post(RUNS, json={"dataset": dataset, "eval_dataset": other})
        assert (answer.status_code, pointers(answer)) == (422, ["/eval_dataset"])
        assert other in answer.json()["detail"]
    same = put_dataset(api, tmp_path)
    assert api.http.post(RUNS, json={"dataset": dataset, "eval_dataset": same}).status_code == 202


def test_the_same_classes_in_another_order_are_refused(api: Api, tmp_path: Path) -> None:
    """A folder's classes are sorted as text: of 0 to 11 the third is 10."""
    counted = [str(label) for label in range(12)]
    dataset = put_dataset(api, tmp_path, num_classes=12)
    sorted_as_text = put_dataset(api, tmp_path, num_classes=12, class_names=sorted(counted))
    answer = api.http.post(RUNS, json={"dataset": dataset, "eval_dataset": sorted_as_text} | NO_DISTILLATION)
    assert (answer.status_code, pointers(answer)) == (422, ["/eval_dataset"])
    assert "label 2 is '10' there and '2' here" in answer.json()["detail"]

    reversed_teacher = put_teacher(api, num_classes=12, class_names=counted[::-1])
    answer = api.http.post(RUNS, json={"dataset": dataset, "teacher": reversed_teacher})
    assert (answer.status_code, pointers(answer)) == (422, ["/teacher"])

    # Of other names nothing can be said, and a teacher without names counts.
    for named in (None, counted, [f"class {name:0>2}" for name in counted]):
        body = {"dataset": dataset, "teacher": put_teacher(api, num_classes=12, class_names=named)}
        assert api.http.post(RUNS, json=body).status_code == 202


def test_a_run_begins_with_a_model_of_its_dimensions(api: Api, tmp_path: Path) -> None:
    dataset = synthetic(api, tmp_path)
    first = api.http.post(RUNS, json={"dataset": dataset, "student": {"depth": 2, "distilled": True}}).json()["spec"]
    model = put_model(api, spec=first)
    answer = api.http.post(RUNS, json={"dataset": dataset, "init": model, "optimizer": {"layer_decay": 0.7}})
    assert answer.status_code == 202, answer.text
    assert (answer.json()["spec"]["init"], answer.json()["spec"]["student"]) == (model, first["student"])
    assert api.http.delete(f"/v1/models/{model}").json()["code"] == "in_use"
    answer = api.http.post(RUNS, json={"dataset": dataset, "init": model, "student": {"depth": 3}})
    assert (answer.status_code, pointers(answer)) == (422, ["/student/depth"])
    for other in (put_model(api), put_model(api, spec=first, in_chans=3)):
        answer = api.http.post(RUNS, json={"dataset": dataset, "init": other})
        assert (answer.status_code, pointers(answer)) == (422, ["/init"])


def test_a_dataset_without_a_teacher_needs_one_or_no_distillation(api: Api, tmp_path: Path) -> None:
    dataset = put_dataset(api, tmp_path)
    refused = api.http.post(RUNS, json={"dataset": dataset})
    assert (refused.status_code, pointers(refused)) == (422, ["/teacher"])
    other = api.http.post(RUNS, json={"dataset": dataset, "teacher": put_teacher(api, num_classes=3)})
    assert (other.status_code, pointers(other)) == (422, ["/teacher"])
    teacher = put_teacher(api)
    run = api.http.post(RUNS, json={"dataset": dataset, "teacher": teacher}).json()
    assert (run["spec"]["teacher"], run["spec"]["stage_one"]["distillation"]) == (teacher, "soft")
    plain = api.http.post(RUNS, json={"dataset": dataset} | NO_DISTILLATION)
    assert (plain.status_code, plain.json()["spec"]["teacher"]) == (202, None)


def test_a_dataset_whose_teacher_was_deleted_is_as_one_without(api: Api, tmp_path: Path) -> None:
    dataset = synthetic(api, tmp_path)
    teachers(api.storage).delete(api.http.get(f"/v1/datasets/{dataset}").json()["teacher"])
    assert pointers(api.http.post(RUNS, json={"dataset": dataset})) == ["/teacher"]
    plain = api.http.post(RUNS, json={"dataset": dataset} | NO_DISTILLATION)
    assert (plain.status_code, plain.json()["spec"]["teacher"]) == (202, None)


def test_stored_logits_are_learnt_from_where_the_dataset_has_or_will_have_them(api: Api, tmp_path: Path) -> None:
    stored = {"stage_one": {"teacher_logits": "stored"}}
    to_come = post_synthesis(api, images_per_class=40, store_logits=True)
    run = api.http.post(RUNS, json={"dataset": to_come["id"]} | stored).json()
    assert (run["status"], run["spec"]["stage_one"]["weights"]["hidden"]) == ("blocked", 0.0)
    teacher = put_teacher(api)
    there = put_dataset(api, tmp_path, teacher=teacher, spec={"flip": 0.0, "store_logits": True})
    teachers(api.storage).delete(teacher)
    assert api.http.post(RUNS, json={"dataset": there} | stored).status_code == 202
    refused = api.http.post(RUNS, json={"dataset": synthetic(api, tmp_path)} | stored)
    assert (refused.status_code, pointers(refused)) == (422, ["/stage_one/teacher_logits"])


def test_an_unfinished_dataset_is_named_by_its_job(api: Api) -> None:
    job = post_synthesis(api)["id"]
    answer = api.http.post(RUNS, json={"dataset": f"ds-{job.partition('-')[2]}"})
    assert (answer.status_code, pointers(answer)) == (422, ["/dataset"])
    assert job in answer.json()["detail"]


def test_metrics_come_from_redis_and_later_from_storage(api: Api, tmp_path: Path) -> None:
    run = api.http.post(RUNS, json={"dataset": synthetic(api, tmp_path)}).json()["id"]
    path = f"{RUNS}/{run}/metrics"
    rows = [{"epoch": epoch, "stage": 1, "loss": 1 / epoch} for epoch in (1, 2, 3)]
    Ledger(api.store).set_rows(run, rows)
    numbered = [{"id": str(i), **row} for i, row in enumerate(rows, 1)]
    for _ in range(2):
        assert api.http.get(path).json() == {"data": numbered, "has_more": False}
        assert api.http.get(path, params={"limit": 1, "after": "1"}).json() == {"data": numbered[1:2], "has_more": True}
        assert api.http.get(path, params={"after": "3"}).json() == {"data": [], "has_more": False}
        api.storage.put(f"runs/{run}/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        api.store.redis.flushdb()
    for after in ("-1", "x", "1.5"):
        assert pointers(api.http.get(path, params={"after": after})) == ["/after"]


@pytest.mark.parametrize("kept_in", ["redis", "storage"])
def test_a_row_with_what_is_no_number_is_told_with_null(api: Api, tmp_path: Path, kept_in: str) -> None:
    run = api.http.post(RUNS, json={"dataset": synthetic(api, tmp_path)}).json()["id"]
    row = {"epoch": 1, "eval_top1": 0.5, "eval_loss": float("nan"), "loss": float("inf")}
    if kept_in == "redis":
        Ledger(api.store).set_rows(run, [row])
    else:
        api.storage.put(f"runs/{run}/metrics.jsonl", (json.dumps(row) + "\n").encode())
    (told,) = api.http.get(f"{RUNS}/{run}/metrics").json()["data"]
    assert told == {"id": "1", "epoch": 1, "eval_top1": 0.5, "eval_loss": None, "loss": None}
