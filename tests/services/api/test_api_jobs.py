"""Synthesis jobs over HTTP; what workers do is done by hand, on the same Redis."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import JobError, live_key
from tests.support.api_contents import (
    answer_of,
    ask,
    claim,
    finish_synthesis,
    pointers,
    post_synthesis,
    put_model,
    put_teacher,
)
from tests.support.services import Api

pytestmark = pytest.mark.services

JOBS = "/v1/synthesis-jobs"


def test_a_minimal_job_is_accepted_with_its_defaults_filled_in(api: Api) -> None:
    teacher = put_teacher(api)
    answer = api.http.post(JOBS, json={"teacher": teacher})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"{JOBS}/{job['id']}"
    assert job["kind"] == "synthesis"
    assert job["status"] == "queued"
    assert job["attempt"] == 1
    assert (job["error"], job["result"], job["started_at"], job["finished_at"]) == (None, None, None, None)
    assert job["spec"]["teacher"] == teacher
    assert job["spec"]["classes"] == list(range(10))
    total = job["spec"]["images_per_class"] * 10
    assert job["progress"] == {"done": 0, "total": total, "unit": "images", "per_second": None, "eta_seconds": None}
    assert datetime.fromisoformat(job["created_at"]).utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(job["created_at"])) < timedelta(hours=1)
    assert api.http.get(answer.headers["location"]).json() == job
    assert api.http.get(job["links"]["self"]).json() == job
    assert api.http.get(job["links"]["events"]).status_code == 200
    assert api.storage.exists(f"jobs/{job['id']}/job.json")


def test_a_dry_run_says_what_it_takes_and_creates_nothing(api: Api) -> None:
    body = {
        "teacher": put_teacher(api),
        "images_per_class": 7,
        "shard_samples": 30,
        "phases": [{"resolution": 12, "iterations": 50}, {"resolution": 32, "iterations": 10}],
    }
    answer = api.http.post(JOBS, params={"dry_run": "true"}, json=body)
    assert answer.status_code == 200
    plan = answer.json()
    assert (plan["images"], plan["shards"], plan["teacher_passes"]) == (70, 3, 70 * 60)
    assert plan["estimated_bytes"] > 70 * 32 * 32
    assert [phase["input_size"] for phase in plan["spec"]["phases"]] == [32, 32]
    assert api.http.get(JOBS).json() == {"data": [], "has_more": False, "unreadable": []}
    assert api.storage.children("jobs") == []
    assert api.http.post(JOBS, params={"dry_run": "true"}, json=plan["spec"]).json() == plan
    assert plan["student"] is None
    more = {"weights": {"adaptive": 0.5}, "adaptive_iterations": 9, "batch_size": 20}
    competing = api.http.post(JOBS, params={"dry_run": "true"}, json=body | more).json()
    assert competing["student"] == {"shards": 1, "images": 30, "iterations": 9, "teacher_forward_passes": 9 * 20}
    bad = api.http.post(JOBS, params={"dry_run": "true"}, json=body | {"seed": -1})
    assert pointers(bad) == ["/seed"]


def test_what_the_inspector_found_a_teacher_not_to_take_is_not_asked_of_it(api: Api) -> None:
    fixed, any_size = (put_teacher(api, image_size=64, refused_input_sizes=sizes) for sizes in ([32], []))
    planned = []
    for teacher in (fixed, any_size):
        body = {"teacher": teacher, "preset": "published-imagenet", "images_per_class": 1}
        plan = api.http.post(JOBS, params={"dry_run": "true"}, json=body).json()
        planned.append([(phase["resolution"], phase["input_size"]) for phase in plan["spec"]["phases"]])
    assert planned == [[(32, 64), (64, 64)], [(32, 32), (64, 64)]]
    phases = [{"resolution": 32, "input_size": 32, "iterations": 1}]
    assert pointers(api.http.post(JOBS, json={"teacher": fixed, "phases": phases})) == ["/phases/0/input_size"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"teacher": None}, ["/teacher"]),
        ({"teacher": "tch-00000000000-00000000"}, ["/teacher"]),
        ({"teacher": "../../etc/passwd"}, ["/teacher"]),
        ({"teacher": "run-00000000000-00000000"}, ["/teacher"]),
        ({"teacher": 3, "bogus": 1}, ["/teacher", "/bogus"]),
        ({"a/b~c": 1}, ["/a~1b~0c"]),
        ({"preset": "mnist"}, ["/preset"]),
        ({"classes": [0, 10]}, ["/classes/1"]),
        ({"classes": []}, ["/classes"]),
        ({"images_per_class": "3", "seed": 1.5}, ["/images_per_class", "/seed"]),
        ({"images_per_class": 201}, ["/images_per_class"]),
        ({"weights": {"cross_entropy": -1, "magic": 2}}, ["/weights/cross_entropy", "/weights/magic"]),
        ({"phases": [{"resolution": 64, "input_size": 32, "iterations": 1}]}, ["/phases/0/resolution"]),
        ({"adaptive_student": "mdl-00000000000-00000000"}, ["/adaptive_student"]),
        ({"weights": {"adaptive": 0.5}, "shard_samples": 10_000}, ["/weights/adaptive"]),
        ({"batch_norm_layer_weights": [1.0, 1.0]}, ["/batch_norm_layer_weights"]),
        ({"crop_min_scale": 0.0, "statistics_memory": -1}, ["/crop_min_scale", "/statistics_memory"]),
        ({"images_per_class": 1, "weights": {"boundary": 1.0}}, ["/weights/boundary"]),
        ({"shard_samples": 10_000_000}, ["/shard_samples"]),
        ({"image_format": "gif"}, ["/image_format"]),
    ],
)
def test_a_bad_spec_is_refused_with_pointers_and_nothing_is_created(
    api: Api, change: dict[str, Any], expected: list[str]
) -> None:
    answer = api.http.post(JOBS, json={"teacher": put_teacher(api)} | change)
    assert answer.status_code == 422
    assert set(pointers(answer)) == set(expected)
    assert api.http.get(JOBS).json()["data"] == []
    assert api.storage.children("jobs") == []


def test_an_adaptive_student_must_know_the_teachers_classes_and_channels(api: Api) -> None:
    student, weights = put_model(api), {"weights": {"adaptive": 0.5}}
    for wrong in ({"num_classes": 7}, {"in_chans": 3}):
        body = {"teacher": put_teacher(api, **wrong), "adaptive_student": student} | weights
        answer = api.http.post(JOBS, json=body)
        assert (answer.status_code, pointers(answer)) == (422, ["/adaptive_student"])
        assert str(next(iter(wrong.values()))) in answer.json()["detail"]
    names = [str(label) for label in range(10)]
    body = {
        "teacher": put_teacher(api, class_names=names[::-1]),
        "adaptive_student": put_model(api, class_names=names),
    }
    answer = api.http.post(JOBS, json=body | weights)
    assert (answer.status_code, pointers(answer)) == (422, ["/adaptive_student"])
    assert "another order" in answer.json()["detail"]
    body = {"teacher": put_teacher(api), "adaptive_student": student} | weights
    answer = api.http.post(JOBS, json=body)
    assert (answer.status_code, answer.json()["spec"]["adaptive_student"]) == (202, student)
    assert api.http.delete(f"/v1/models/{student}").status_code == 409, "a job that is to come needs it"


def test_lists_are_newest_first_and_paged_and_filtered(api: Api) -> None:
    teacher = put_teacher(api)
    made = [post_synthesis(api, teacher=teacher)["id"] for _ in range(5)][::-1]
    first = api.http.get(JOBS, params={"limit": 2}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (made[:2], True)
    rest = api.http.get(JOBS, params={"limit": 3, "after": made[1]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (made[2:], False)
    api.http.post(f"{JOBS}/{made[3]}/cancel")
    for status, expected in (("canceled", made[3:4]), ("queued", made[:3] + made[4:]), ("running", [])):
        assert [job["id"] for job in api.http.get(JOBS, params={"status": status}).json()["data"]] == expected
    # An id that is none (any more) has its place in the order all the same.
    assert api.http.get(JOBS, params={"after": "syn-00000000000-00000000"}).json()["data"] == []
    assert api.http.get("/v1/training-runs").json() == {"data": [], "has_more": False, "unreadable": []}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "status=done", "after=x", "after=", "after=tch-1"]
)
def test_bad_queries_of_a_list_are_refused(api: Api, query: str) -> None:
    answer = api.http.get(f"{JOBS}?{query}")
    assert answer.status_code == 422
    assert pointers(answer) == ["/" + query.partition("=")[0]]


def test_a_job_of_the_other_kind_or_none_is_not_found(api: Api) -> None:
    job = post_synthesis(api)["id"]
    for path in (f"/v1/training-runs/{job}", f"{JOBS}/syn-00000000000-00000000", f"{JOBS}/x", f"{JOBS}/%2e%2e"):
        for method, suffix in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")):
            answer = api.http.request(method, path + suffix)
            assert answer.status_code == 404, (method, path, suffix)
            assert pointers(answer) == []
    assert api.http.get("/v1/training-runs/run-00000000000-00000000/metrics").status_code == 404


def test_cancel_and_retry_of_a_queued_job(api: Api) -> None:
    job = post_synthesis(api)["id"]
    retry_too_early = api.http.post(f"{JOBS}/{job}/retry")
    assert retry_too_early.status_code == 409
    canceled = api.http.post(f"{JOBS}/{job}/cancel")
    assert (canceled.status_code, canceled.json()["status"]) == (202, "canceled")
    assert canceled.json()["finished_at"] is not None
    again = api.http.post(f"{JOBS}/{job}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    retried = api.http.post(f"{JOBS}/{job}/retry")
    assert (retried.status_code, retried.json()["status"], retried.json()["attempt"]) == (202, "queued", 2)
    assert retried.json()["finished_at"] is None


def test_cancel_of_a_running_job_goes_through_canceling(api: Api) -> None:
    job = post_synthesis(api)["id"]
    held = claim(api)
    for _ in range(2):
        answer = api.http.post(f"{JOBS}/{job}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "canceling")
    assert api.http.post(f"{JOBS}/{job}/retry").status_code == 409
    Ledger(api.store).release(held)
    assert api.http.get(f"{JOBS}/{job}").json()["status"] == "canceled"


def test_what_has_succeeded_can_be_neither_canceled_nor_retried(api: Api, tmp_path: Path) -> None:
    job = post_synthesis(api)
    dataset = finish_synthesis(api, job, tmp_path)
    for step in ("cancel", "retry"):
        assert api.http.post(f"{JOBS}/{job['id']}/{step}").status_code == 409
    assert api.storage.exists(f"jobs/{job['id']}/final.json"), "a refused retry leaves how it ended"
    after = api.http.get(f"{JOBS}/{job['id']}").json()
    assert after["result"] == {"dataset": dataset}
    assert api.http.get(after["links"]["dataset"]).json()["id"] == dataset


def test_a_failed_job_shows_its_error_and_can_be_retried(api: Api) -> None:
    job = post_synthesis(api)["id"]
    held = claim(api)
    Ledger(api.store).fail(job, JobError(code="diverged", message="loss is nan", retryable=True), held)
    failed = api.http.get(f"{JOBS}/{job}").json()
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "diverged", "message": "loss is nan", "retryable": True}
    assert api.http.post(f"{JOBS}/{job}/retry").json()["error"] is None


def test_events_are_paged_oldest_first(api: Api) -> None:
    job = post_synthesis(api)["id"]
    claim(api)
    Ledger(api.store).log.add(job, "hello")
    api.http.post(f"{JOBS}/{job}/cancel")
    path = f"{JOBS}/{job}/events"
    events = api.http.get(path).json()["data"]
    assert [(event["type"], event["data"]) for event in events] == [
        ("status", {"status": "queued"}),
        ("status", {"status": "running"}),
        ("log", {"message": "hello"}),
        ("status", {"status": "canceling"}),
    ]
    assert all(event.keys() == {"id", "at", "type", "data"} for event in events)
    page = api.http.get(path, params={"limit": 2, "after": events[0]["id"]}).json()
    assert page == {"data": events[1:3], "has_more": True}
    assert api.http.get(path, params={"after": events[3]["id"]}).json() == {"data": [], "has_more": False}
    for after in ("x", "1", "-", "(0-0"):
        assert api.http.get(path, params={"after": after}).status_code == 422


def test_waiting_ends_with_a_change_of_status_and_blocks_nobody(api: Api) -> None:
    path = post_synthesis(api)["links"]["self"]
    waiting = [ask(api, f"GET {path}?wait=60") for _ in range(50)]
    # The server answers others meanwhile, with the very page that those wait for.
    assert api.http.get(path, params={"wait": "0"}).json()["status"] == "queued"
    claim(api)
    assert [answer_of(connection)["status"] for connection in waiting] == ["running"] * 50


def test_waiting_for_what_has_ended_or_does_not_change(api: Api) -> None:
    job = post_synthesis(api)["id"]
    assert api.http.get(f"{JOBS}/{job}", params={"wait": "0.5"}).json()["status"] == "queued"
    api.http.post(f"{JOBS}/{job}/cancel")
    # Well below the 60 s that it would take to wait them out.
    assert api.http.get(f"{JOBS}/{job}", params={"wait": "60"}, timeout=30).json()["status"] == "canceled"
    for wait in ("-1", "60.1", "x", "nan", "inf", ""):
        answer = api.http.get(f"{JOBS}/{job}", params={"wait": wait})
        assert (answer.status_code, pointers(answer)) == (422, ["/wait"])


def test_the_preview_comes_with_the_first_images(api: Api) -> None:
    job = post_synthesis(api)
    preview = job["links"]["preview"]
    assert preview == f"{JOBS}/{job['id']}/preview.png"
    assert api.http.get(preview).status_code == 404
    for content in (b"first", b"second"):
        api.storage.put(f"datasets/ds-{job['id'].partition('-')[2]}/preview.png", content)
        answer = api.http.get(preview)
        assert (answer.content, answer.headers["content-type"]) == (content, "image/png")
        assert answer.headers["cache-control"] == "no-cache"
    assert api.http.get(f"/v1/datasets/ds-{job['id'].partition('-')[2]}").status_code == 404


def test_the_live_picture_stands_in_for_the_preview_until_there_is_one_and_is_gone_with_the_job(api: Api) -> None:
    job = post_synthesis(api)
    live, preview, timelapse = (job["links"][name] for name in ("live", "preview", "timelapse"))
    assert live == f"{JOBS}/{job['id']}/live.png"
    for path in (live, preview, timelapse):
        assert pointers(api.http.get(path)) == []
        assert api.http.get(path).status_code == 404
    for content in (b"first", b"second"):
        api.storage.put(live_key(job["id"]), content)
        tags = []
        for path in (live, preview):
            answer = api.http.get(path)
            assert (answer.content, answer.headers["content-type"]) == (content, "image/png")
            assert answer.headers["cache-control"] == "no-cache"
            tags.append(answer.headers["etag"])
            same = api.http.get(path, headers={"If-None-Match": tags[-1]})
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tags[-1])
            assert api.http.get(path, headers={"If-None-Match": '"another"'}).status_code == 200
        assert tags[0] == tags[1]
    prefix = f"datasets/ds-{job['id'].partition('-')[2]}"
    api.storage.put(f"{prefix}/preview.png", b"done")
    api.storage.put(f"{prefix}/timelapse.webp", b"film")
    assert [api.http.get(path).content for path in (live, preview, timelapse)] == [b"second", b"done", b"film"]
    assert api.http.get(timelapse).headers["content-type"] == "image/webp"

    api.http.post(job["links"]["cancel"])
    ended = api.http.get(live)
    assert (ended.status_code, ended.json()["code"]) == (404, "not_found")
    assert f"GET {preview} has the images that are done" in ended.json()["detail"]
    assert not api.storage.exists(live_key(job["id"]))
    api.storage.put(live_key(job["id"]), b"too late")  # by a worker that stood still meanwhile
    api.storage.delete(f"{prefix}/preview.png")
    assert [api.http.get(path).status_code for path in (live, preview)] == [404, 404]


def test_no_job_is_half_created_when_storage_fails(api: Api) -> None:
    teacher = put_teacher(api)
    in_the_way = Path(api.settings.storage_url.removeprefix("file://")) / "jobs"
    in_the_way.touch()
    answer = api.http.post(JOBS, json={"teacher": teacher})
    in_the_way.unlink()
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert api.http.get(JOBS).json()["data"] == []


def test_a_log_is_served_from_redis_and_later_from_storage(api: Api) -> None:
    job = post_synthesis(api)
    ledger = Ledger(api.store)
    path = job["links"]["log"]
    assert (api.http.get(path).status_code, api.http.get(path).text) == (200, "")
    ledger.log.add(job["id"], "unit 0 begins")
    ledger.log.add(job["id"], "Traceback\n  deep")
    ledger.log.keep(job["id"])
    for _ in range(2):
        answer = api.http.get(path)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        first, second, third = answer.text.splitlines()
        assert [first.partition(" ")[2], second.partition(" ")[2], third] == ["unit 0 begins", "Traceback", "  deep"]
        api.store.redis.flushdb()
    for unknown in (
        path.replace("synthesis-jobs", "training-runs"),
        path.replace(job["id"], "syn-00000000000-00000000"),
    ):
        assert api.http.get(unknown).status_code == 404


def test_a_job_that_redis_lost_is_retried_from_what_storage_knows(api: Api) -> None:
    job = post_synthesis(api)
    api.store.redis.flushdb()
    assert api.http.get(job["links"]["self"]).status_code == 404
    again = api.http.post(job["links"]["retry"])
    assert again.status_code == 202
    assert (again.json()["id"], again.json()["status"], again.json()["spec"]) == (job["id"], "queued", job["spec"])
    assert api.http.post(job["links"]["retry"]).status_code == 409
    assert api.http.post("/v1/synthesis-jobs/syn-00000000000-00000000/retry").status_code == 404


def test_more_jobs_than_may_wait_are_refused_and_leave_nothing(api: Api) -> None:
    teacher = put_teacher(api)
    run = api.http.post("/v1/training-runs", json={"dataset": post_synthesis(api, teacher=teacher)["id"]}).json()
    assert run["status"] == "blocked"
    api.store.redis.zadd("dearkd:jobs:synthesis:queued", {f"syn-{i}": 0 for i in range(198)})
    before = {stored.key for stored in api.storage.objects("jobs")}
    for path, body in (
        ("synthesis-jobs", {"teacher": teacher}),
        ("training-runs", {"dataset": run["spec"]["dataset"]}),
    ):
        refused = api.http.post(f"/v1/{path}", json=body)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_jobs")
        assert refused.headers["content-type"] == "application/problem+json"
        assert "DEARKD_MAX_QUEUED_JOBS" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) > 0
    assert {stored.key for stored in api.storage.objects("jobs")} == before
    api.http.post(run["links"]["cancel"])
    assert api.http.post("/v1/synthesis-jobs", json={"teacher": teacher}).status_code == 202
