"""`Idempotency-Key`: sent again, a request is given its first answer, and what it creates is there once."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from dearkd.identifiers import new_id, sibling
from dearkd.jobs.idempotency import Answers
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from tests.services.api.test_api_teachers import form
from tests.support.api_contents import pointers, put_dataset, put_teacher, shard
from tests.support.services import Api, database, eventually, inspecting, serving

pytestmark = pytest.mark.services

JOBS, RUNS = "/v1/synthesis-jobs", "/v1/training-runs"
KEY = "9b2f6c1e-first"


def post(api: Api, path: str, body: Any, key: str | None = KEY) -> httpx.Response:
    return api.http.post(path, json=body, headers={} if key is None else {"Idempotency-Key": key})


def count(api: Api, path: str) -> int:
    return len(api.http.get(path, params={"limit": 200}).json()["data"])


def is_replay(answer: httpx.Response, first: httpx.Response) -> bool:
    same = (answer.status_code, answer.content, answer.headers.get("location")) == (
        first.status_code,
        first.content,
        first.headers.get("location"),
    )
    return same and answer.headers.get("idempotent-replayed") == "true"


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_the_same_request_is_given_the_first_answer(api: Api, tmp_path: Path) -> None:
    teacher, dataset = put_teacher(api), put_dataset(api, tmp_path)
    requests: list[tuple[str, dict[str, Any]]] = [
        (JOBS, {"teacher": teacher, "images_per_class": 2}),
        (RUNS, {"dataset": dataset, "stage_one": {"distillation": "none", "weights": {"hidden": 0}}}),
    ]
    for path, body in requests:
        key = f"{KEY} {path}"
        first = post(api, path, body, key)
        assert (first.status_code, "idempotent-replayed" in first.headers) == (202, False), first.text
        # Nothing of it depends on how the JSON is written, or on what became of the job since.
        assert api.http.post(f"{path}/{first.json()['id']}/cancel").status_code == 202
        swapped = json.dumps(dict(reversed(body.items())), indent=3)
        headers = {"Idempotency-Key": key, "content-type": "application/json"}
        assert is_replay(api.http.post(path, content=swapped, headers=headers), first)
        assert is_replay(post(api, path, body, key), first)
        assert count(api, path) == 1
        # Without a key, or with another, it is another job.
        assert post(api, path, body, None).json()["id"] != post(api, path, body, key + "2").json()["id"]
        assert count(api, path) == 3


def test_another_request_with_the_key_is_refused(api: Api) -> None:
    teacher = put_teacher(api)
    first = post(api, JOBS, {"teacher": teacher})
    for path, body in [
        (JOBS, {"teacher": teacher, "seed": 1}),
        (JOBS, {"teacher": put_teacher(api)}),
        (JOBS, {"teacher": "no such one"}),
        (RUNS, {"teacher": teacher}),
        (f"{JOBS}/{first.json()['id']}/retry", {"teacher": teacher}),
    ]:
        answer = post(api, path, body)
        assert answer.status_code == 422, answer.text
    reused = post(api, JOBS, {"teacher": teacher, "seed": 1})
    assert reused.json()["code"] == "idempotency_key_reused"
    assert KEY in reused.json()["detail"]
    assert count(api, JOBS) == 1
    assert is_replay(post(api, JOBS, {"teacher": teacher}), first)


@pytest.mark.parametrize("key", ["", "x" * 256, "schlüssel".encode().decode("latin-1"), "a\tb"])
def test_what_is_no_key_is_refused(api: Api, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    answer = api.http.post(JOBS, json={"teacher": put_teacher(api)}, headers=headers)
    assert (answer.status_code, count(api, JOBS)) == (422, 0), answer.text


def test_what_was_refused_is_not_kept(api: Api, tmp_path: Path) -> None:
    body = {"dataset": new_id("ds"), "stage_one": {"distillation": "none", "weights": {"hidden": 0}}}
    refused = post(api, RUNS, body)
    assert (refused.status_code, pointers(refused)) == (422, ["/dataset"])
    put_dataset(api, tmp_path, id=body["dataset"])
    accepted = post(api, RUNS, body)
    assert accepted.status_code == 202, accepted.text


def test_a_dry_run_creates_nothing_and_uses_no_key(api: Api) -> None:
    teacher = put_teacher(api)
    for _ in range(2):
        assert post(api, f"{JOBS}?dry_run=true", {"teacher": teacher}).json()["images"] > 0
    assert post(api, JOBS, {"teacher": teacher}).status_code == 202


def test_a_thousand_at_once_make_one_job(api: Api) -> None:
    teacher = put_teacher(api)
    start = threading.Barrier(25)

    def send(_: int) -> list[tuple[int, str]]:
        with httpx.Client(base_url=api.url, timeout=60) as http:
            start.wait()
            found = []
            for _ in range(40):
                answer = http.post(JOBS, json={"teacher": teacher}, headers={"Idempotency-Key": KEY})
                found.append((answer.status_code, answer.json()["id"]))
            return found

    with ThreadPoolExecutor(25) as pool:
        answers = [answer for found in pool.map(send, range(25)) for answer in found]
    assert len(answers) == 1000
    assert len(set(answers)) == 1
    assert answers[0][0] == 202
    assert count(api, JOBS) == 1


def test_a_retry_is_carried_out_once(api: Api, tmp_path: Path) -> None:
    teacher = put_teacher(api)
    job = post(api, JOBS, {"teacher": teacher}, None).json()["id"]
    api.http.post(f"{JOBS}/{job}/cancel")
    first = post(api, f"{JOBS}/{job}/retry", {})
    assert (first.status_code, first.json()["attempt"]) == (202, 2)
    assert is_replay(post(api, f"{JOBS}/{job}/retry", {}), first)
    assert api.http.get(f"{JOBS}/{job}").json()["attempt"] == 2


@pytest.mark.parametrize("made", [True, False], ids=["after the job was made", "before"])
def test_who_asks_again_after_the_api_was_killed_gets_the_one_job(api: Api, made: bool) -> None:
    """A killed API leaves the claim, and maybe the job, without an answer."""
    teacher = put_teacher(api)
    body = {"teacher": teacher, "images_per_class": 2}
    first = post(api, JOBS, body)
    (record,) = api.store.redis.keys("dearkd:answer:*")
    api.store.redis.hdel(record, "answer")
    if not made:
        api.store.redis.flushdb()
        fingerprint = fingerprint_in(api, body)
        Answers(api.store.redis).claim(None, KEY, fingerprint, sibling(first.json()["id"], "tmp"), seconds=0)
    api.store.redis.hset("dearkd:answer:" + record.decode().split(":", 2)[2], "until", 0)
    again = post(api, JOBS, body)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"]), again.text
    assert is_replay(post(api, JOBS, body), again)
    assert count(api, JOBS) == 1


def test_what_failed_after_it_was_made_is_found_by_who_asks_again(
    redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the first answer is lost in the API itself, behind the job: a fault, not a refusal."""
    from starlette.testclient import TestClient

    from dearkd.jobs.store import JobStore
    from dearkd_api.app import create_app

    settings = Settings(redis_url=database(redis_server, 11), storage_url=f"file://{tmp_path}/storage")
    create = JobStore.create_synthesis
    broken = [True]

    def lost(self: JobStore, *arguments: Any, **named: Any) -> Any:
        job = create(self, *arguments, **named)
        if broken.pop() if broken else False:
            raise RuntimeError("behind the job")
        return job

    monkeypatch.setattr(JobStore, "create_synthesis", lost)
    app = create_app(settings)
    http = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    teacher = put_teacher(app.state.backend)
    headers = {"Idempotency-Key": KEY}
    assert http.post(JOBS, json={"teacher": teacher}, headers=headers).status_code == 500
    again = http.post(JOBS, json={"teacher": teacher}, headers=headers)
    assert again.status_code == 202, again.text
    assert [job["id"] for job in http.get(JOBS).json()["data"]] == [again.json()["id"]]


def fingerprint_in(api: Api, body: Any) -> str:
    """The fingerprint that the API itself gives such a request, read from a record of another key."""
    other = post(api, JOBS, body, "another")
    (record,) = api.store.redis.keys("dearkd:answer:*")
    found = api.store.redis.hget(record, "fingerprint")
    assert found is not None
    api.http.post(f"{JOBS}/{other.json()['id']}/cancel")
    api.store.redis.flushdb()
    return found.decode()


def test_keys_of_different_owners_are_different(redis_server: str, tmp_path: Path) -> None:
    ours, theirs = "a-key-of-ours-0123456789", "a-key-of-theirs-012345678"
    settings = Settings(
        redis_url=database(redis_server, 5), storage_url=f"file://{tmp_path}/storage", api_keys=f"{ours},{theirs}"
    )
    with serving(settings, tmp_path) as api:
        teacher = put_teacher(api)
        found = []
        for key in (ours, theirs):
            headers = {"authorization": f"Bearer {key}", "Idempotency-Key": KEY}
            found.append(api.http.post(JOBS, json={"teacher": teacher}, headers=headers))
    assert [answer.status_code for answer in found] == [202, 202]
    assert found[0].json()["id"] != found[1].json()["id"]


# --- what the inspector makes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inspected(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("inspected")
    settings = Settings(
        redis_url=database(redis_server, 6), storage_url=f"file://{folder}/storage", cache_dir=folder / "cache"
    )
    with inspecting(settings, folder), serving(settings, folder) as api:
        eventually(lambda: api.http.get("/readyz").json().get("workers", {}).get("inspect"))
        yield api


def upload(api: Api, teacher: tuple[TeacherSpec, Path], key: str) -> httpx.Response:
    spec, weights = teacher
    parts = form(("teacher", None, json.dumps(spec.model_dump())), ("weights", "w", weights.read_bytes()))
    headers = {"Idempotency-Key": key, **parts.pop("headers", {})}
    return api.http.post("/v1/teachers", headers=headers, **parts)


def test_an_upload_is_registered_once(inspected: Api, plain_teacher: tuple[TeacherSpec, Path]) -> None:
    before = count(inspected, "/v1/teachers")
    with ThreadPoolExecutor(3) as pool:
        answers = [*pool.map(lambda _: upload(inspected, plain_teacher, "an upload"), range(3))]
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
    assert len({answer.content for answer in answers}) == 1
    assert count(inspected, "/v1/teachers") == before + 1
    spec, weights = plain_teacher
    other = upload(inspected, (spec.model_copy(update={"name": "other"}), weights), "an upload")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert list(inspected.storage.objects("tmp")) == []


def test_a_dataset_and_a_check_are_made_once(
    inspected: Api, plain_teacher: tuple[TeacherSpec, Path], tmp_path: Path
) -> None:
    made = shard(tmp_path / "a.tar", list(range(10)))
    inspected.storage.put("real/once/a.tar", tmp_path / made.name)
    first = post(inspected, "/v1/datasets", {"prefix": "real/once", "name": "once"}, "a dataset")
    assert first.status_code == 201, first.text
    assert is_replay(post(inspected, "/v1/datasets", {"prefix": "real/once", "name": "once"}, "a dataset"), first)
    assert count(inspected, "/v1/datasets") == 1
    teacher = upload(inspected, plain_teacher, "a teacher").json()["id"]
    body = {"dataset": first.json()["id"]}
    check = post(inspected, f"/v1/teachers/{teacher}/checks", body, "a check")
    assert check.status_code == 202, check.text
    assert is_replay(post(inspected, f"/v1/teachers/{teacher}/checks", body, "a check"), check)


def test_an_upload_that_was_handed_over_before_a_kill_is_not_registered_twice(
    inspected: Api, plain_teacher: tuple[TeacherSpec, Path]
) -> None:
    first = upload(inspected, plain_teacher, "killed")
    before = count(inspected, "/v1/teachers")
    records = inspected.store.redis.keys("dearkd:answer:*")
    (record,) = [
        key
        for key in records
        if json.loads(inspected.store.redis.hget(key, "answer") or b'{"body": ""}')["body"] == first.text
    ]
    inspected.store.redis.hdel(record, "answer")
    inspected.store.redis.hset(record, "until", 0)
    again = upload(inspected, plain_teacher, "killed")
    assert (again.status_code, again.json()) == (201, first.json()), again.text
    assert count(inspected, "/v1/teachers") == before
    # Nor where the kill came before the inspector had it: then this upload takes the id that was settled.
    assert inspected.http.delete(again.headers["location"]).status_code == 204
    inspected.store.redis.delete(f"dearkd:inspection:{first.json()['id']}")
    inspected.store.redis.hdel(record, "answer")
    inspected.store.redis.hset(record, "until", 0)
    third = upload(inspected, plain_teacher, "killed")
    assert (third.status_code, third.json()["id"]) == (201, first.json()["id"])
    assert list(inspected.storage.objects("tmp")) == []
