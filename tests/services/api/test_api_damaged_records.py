"""Manifests and records that were cut short or altered in storage: named, a clear 4xx, and no listing fails by them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import JobError
from dearkd.jobs.queue import require_worker
from dearkd.settings import Settings
from tests.services.api.test_api_registration import put_shards
from tests.support.api_contents import (
    claim,
    finish_synthesis,
    pointers,
    post_synthesis,
    put_dataset,
    put_model,
    put_teacher,
)
from tests.support.damaged_tars import KINDS
from tests.support.services import Api, database, eventually, inspecting, serving

pytestmark = pytest.mark.services

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "zeros": lambda text: bytes(len(text)),
    "a list": lambda text: b"[]",
    "null": lambda text: b"null",
    "not UTF-8": lambda text: b"\xff" + text,
    "very deep": lambda text: b"[" * 100_000,
    "without a field": lambda text: json.dumps({"id": json.loads(text)["id"]}).encode(),
}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))


def put_all(api: Api, tmp_path: Path) -> list[str]:
    return [
        f"teachers/{put_teacher(api)}/teacher.json",
        f"datasets/{put_dataset(api, tmp_path, images=10)}/dataset.json",
        f"models/{put_model(api)}/model.json",
    ]


@damages
def test_a_damaged_manifest_is_named_and_hides_no_other(api: Api, tmp_path: Path, damage: Damage) -> None:
    whole = put_all(api, tmp_path)
    for key in put_all(api, tmp_path):
        api.storage.put(key, damage(api.storage.read(key)))
        path = f"/v1/{key.rpartition('/')[0]}"
        collection = path.rpartition("/")[0]
        for method, suffix in (("GET", ""), ("GET", "/files/x")):
            if suffix and collection == "/v1/teachers":
                continue
            answer = api.http.request(method, path + suffix)
            assert (answer.status_code, answer.json()["code"], pointers(answer)) == (409, "corrupt_data", [])
            assert key in answer.json()["detail"]
            assert "delete" in answer.json()["detail"]
            assert len(answer.json()["detail"]) < 600
        listed = api.http.get(collection)
        assert listed.status_code == 200
        (sound,) = (other.split("/")[1] for other in whole if collection == f"/v1/{other.split('/')[0]}")
        assert [item["id"] for item in listed.json()["data"]] == [sound]
        assert api.http.delete(path).status_code == 204
        assert not list(api.storage.objects(key.rpartition("/")[0]))


@damages
def test_a_reference_to_a_damaged_one_is_refused_at_its_field(api: Api, tmp_path: Path, damage: Damage) -> None:
    teacher, model = put_teacher(api), put_model(api)
    dataset = put_dataset(api, tmp_path, teacher=teacher, spec={"flip": 0.0})
    sound = put_dataset(api, tmp_path, teacher=put_teacher(api), spec={"flip": 0.0})
    other = put_dataset(api, tmp_path)

    def damaged(key: str) -> None:
        api.storage.put(key, damage(api.storage.read(key)))

    damaged(f"teachers/{teacher}/teacher.json")
    damaged(f"models/{model}/model.json")
    damaged(f"datasets/{other}/dataset.json")
    for path, body, pointer in (
        ("synthesis-jobs", {"teacher": teacher}, "/teacher"),
        (
            "synthesis-jobs",
            {"teacher": put_teacher(api), "adaptive_student": model, "weights": {"adaptive": 1.0}},
            "/adaptive_student",
        ),
        ("training-runs", {"dataset": sound, "teacher": teacher}, "/teacher"),
        ("training-runs", {"dataset": dataset}, "/teacher"),
        ("training-runs", {"dataset": sound, "init": model}, "/init"),
        ("training-runs", {"dataset": other}, "/dataset"),
        ("training-runs", {"dataset": sound, "eval_dataset": other}, "/eval_dataset"),
    ):
        answer = api.http.post(f"/v1/{path}", json=body)
        assert (answer.status_code, answer.json()["code"], pointers(answer)) == (422, "corrupt_data", [pointer]), body
        assert ".json cannot be read" in answer.json()["detail"]
        assert "restore" in answer.json()["detail"]


def test_a_teacher_that_no_teacher_can_be_is_refused_too(api: Api) -> None:
    """The manifest is one, but what it says breaks the rules of a description."""
    teacher = put_teacher(api)
    key = f"teachers/{teacher}/teacher.json"
    api.storage.put(key, json.dumps(json.loads(api.storage.read(key)) | {"mean": [7.0, 7.0]}).encode())
    answer = api.http.post("/v1/synthesis-jobs", json={"teacher": teacher})
    assert (answer.status_code, pointers(answer)) == (422, ["/teacher"])
    assert key in answer.json()["detail"]


def test_a_job_whose_teacher_or_dataset_was_damaged_since(api: Api, tmp_path: Path) -> None:
    job = post_synthesis(api)
    key = f"teachers/{job['spec']['teacher']}/teacher.json"
    text = api.storage.read(key)
    api.storage.put(key, text[:20])
    answer = api.http.post("/v1/training-runs", json={"dataset": job["id"]})
    assert (answer.status_code, pointers(answer)) == (422, ["/dataset"])
    assert key in answer.json()["detail"]
    api.storage.put(key, text)
    dataset = finish_synthesis(api, job, tmp_path)
    api.storage.put(f"datasets/{dataset}/dataset.json", b"{")
    for emptied in (False, True):
        if emptied:
            api.store.redis.flushdb()
        for reference in (job["id"], dataset):
            answer = api.http.post("/v1/training-runs", json={"dataset": reference})
            assert (answer.status_code, pointers(answer)) == (422, ["/dataset"])
            assert answer.json()["code"] == "corrupt_data"


@damages
def test_damaged_records_of_a_job_that_redis_lost(api: Api, damage: Damage) -> None:
    job = post_synthesis(api)
    Ledger(api.store).fail(job["id"], JobError(code="x", message="x", retryable=True), claim(api))
    api.store.settle(api.store.get(job["id"]))
    run = api.http.post("/v1/training-runs", json={"dataset": job["id"]})
    assert run.status_code == 409
    for name in ("final.json", "job.json"):
        api.store.redis.flushdb()
        key = f"jobs/{job['id']}/{name}"
        api.storage.put(key, damage(api.storage.read(key)))
        for content in (None, {"from": "beginning"}):
            answer = api.http.post(job["links"]["retry"], **({"json": content} if content else {}))
            assert (answer.status_code, answer.json()["code"], pointers(answer)) == (409, "corrupt_data", [])
            assert key in answer.json()["detail"]
    assert api.http.get("/v1/synthesis-jobs").json()["data"] == []


@pytest.mark.parametrize("text", [b'{"epoch": 1}\n{"epoch": 2, "lo', b"\xff\xfe", b"[]\n", b"1\n", b"[" * 100_000])
def test_damaged_rows_of_a_run_that_redis_lost(api: Api, tmp_path: Path, text: bytes) -> None:
    dataset = put_dataset(api, tmp_path, teacher=put_teacher(api), spec={"flip": 0.0})
    run = api.http.post("/v1/training-runs", json={"dataset": dataset}).json()
    api.store.redis.flushdb()
    key = f"runs/{run['id']}/metrics.jsonl"
    api.storage.put(key, text)
    answer = api.http.get(run["links"]["metrics"])
    assert (answer.status_code, answer.json()["code"]) == (409, "corrupt_data")
    assert key in answer.json()["detail"]
    api.storage.put(f"jobs/{run['id']}/log.txt", b"\xffnoted\n")
    assert "noted" in api.http.get(run["links"]["log"]).text


@pytest.fixture(scope="module")
def inspected(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("damaged")
    settings = Settings(
        redis_url=database(redis_server, 8),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
    )
    with inspecting(settings, folder), serving(settings, folder) as api:

        def listens() -> bool:
            try:
                require_worker(api.store.redis, "inspect")
            except Exception:
                return False
            return True

        eventually(listens)
        yield api


# A real inspector for some of those that `damaged_tars` has; each costs a process.
@pytest.mark.parametrize(
    "kind", ["noise", "negative size", "name that is not UTF-8", "sparse of 10 TB", "checksum in the middle"]
)
def test_a_damaged_tar_is_refused_at_the_prefix(inspected: Api, tmp_path: Path, kind: str) -> None:
    prefix = f"shared/{kind.replace(' ', '-')}"
    put_shards(inspected, prefix, tmp_path, [0, 1])
    inspected.storage.put(f"{prefix}/part-1.tar", KINDS[kind]())
    answer = inspected.http.post("/v1/datasets", json={"prefix": prefix})
    assert (answer.status_code, answer.json()["code"], pointers(answer)) == (422, "corrupt_shard", ["/prefix"])
    assert "part-1.tar" in answer.json()["detail"]
    assert inspected.http.get("/v1/datasets").json()["data"] == []


def test_a_prefix_that_no_folder_can_be_or_holds_what_has_no_key(api: Api) -> None:
    root = Path(api.settings.storage_url.removeprefix("file://"))
    api.storage.put("shared/a.tar", b"x")
    (root / "shared/latin").mkdir()
    (root / "shared/latin" / b"\xe9.tar".decode(errors="surrogateescape")).write_bytes(b"x")
    (root / "shared/loop").mkdir()
    (root / "shared/loop/again").symlink_to(root / "shared/loop")
    for prefix in (
        "shared/a.tar/b",
        "shared/latin",
        "shared/loop",
        "x" * 256,
        "shared/" + "😀" * 64,
        "/".join(["x" * 200] * 6),
        "a/" * 500 + "a",
    ):
        answer = api.http.post("/v1/datasets", json={"prefix": prefix})
        assert (answer.status_code, pointers(answer)) == (422, ["/prefix"]), prefix
