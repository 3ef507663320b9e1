"""Checkpoints of a run over HTTP: those that it keeps, in pages, and their files, whole or not at all."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.storage.checkpoints import CheckpointFile, StoredCheckpoint, checkpoint_key, pointer_key
from tests.support.api_contents import Json, pointers, post_synthesis, put_dataset, put_teacher
from tests.support.services import Api, database, serving

pytestmark = pytest.mark.services

RUNS = "/v1/training-runs"
PLAIN = {"stage_one": {"distillation": "none", "weights": {"hidden": 0}}}
A, B = "key-of-a-0123456789", "key-of-b-0123456789"


def post(api: Api, tmp_path: Path) -> Json:
    answer = api.http.post(RUNS, json={"dataset": put_dataset(api, tmp_path), **PLAIN})
    assert answer.status_code == 202, answer.text
    run: Json = answer.json()
    return run


def content(number: int) -> bytes:
    return f"checkpoint {number} ".encode() * 100


def stored(api: Api, run: str, numbers: list[int]) -> list[CheckpointFile]:
    """What a trainer leaves that keeps so many, the first of them the newest."""
    files = []
    for number in numbers:
        data = content(number)
        files.append(
            CheckpointFile(
                name="last.pt",
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                epoch=number,
                stage=1,
                step=10 * number,
                created_at=datetime(2026, 1, 1, 12, number, tzinfo=UTC),
                metrics={"epoch": number, "loss": None, "eval_top1": 0.5} if number % 2 else None,
            )
        )
        api.storage.put(checkpoint_key(run, files[-1]), data)
    best = CheckpointFile(name="best.safetensors", bytes=1, sha256="0" * 64)
    pointer = StoredCheckpoint(files=[files[0], best], earlier=files[1:])
    api.storage.put(pointer_key(run), pointer.model_dump_json().encode())
    return files


def test_a_run_lists_what_it_keeps_newest_first_and_in_pages(api: Api, tmp_path: Path) -> None:
    run = post(api, tmp_path)
    path = run["links"]["checkpoints"]
    assert api.http.get(path).json() == {"data": [], "has_more": False}
    files = stored(api, run["id"], [5, 4, 3])
    whole = api.http.get(path).json()
    assert (whole["has_more"], [c["epoch"] for c in whole["data"]]) == (False, [5, 4, 3])
    first, second, _ = whole["data"]
    assert first == {
        "id": files[0].sha256[:16],
        "epoch": 5,
        "stage": 1,
        "step": 50,
        "created_at": "2026-01-01T12:05:00Z",
        "bytes": files[0].bytes,
        "metrics": {"epoch": 5, "loss": None, "eval_top1": 0.5},
        "files": [{"name": "checkpoint.pt", "bytes": files[0].bytes, "sha256": files[0].sha256}],
    }
    assert second["metrics"] is None
    page = api.http.get(path, params={"limit": 1, "after": first["id"]}).json()
    assert (page["has_more"], page["data"]) == (True, [second])
    assert api.http.get(path, params={"after": second["id"]}).json() == {"data": whole["data"][2:], "has_more": False}
    gone = api.http.get(path, params={"after": "0" * 16}).json()
    assert gone == {"data": [], "has_more": False}, "where it is gone, so are those that were older"
    for query in ({"after": "5"}, {"after": "g" * 16}, {"limit": 0}, {"limit": 201}):
        assert pointers(api.http.get(path, params=query)) == [f"/{next(iter(query))}"]


def test_a_file_comes_whole_or_in_ranges(api: Api, tmp_path: Path) -> None:
    run = post(api, tmp_path)["id"]
    (file,) = stored(api, run, [3])
    path = f"{RUNS}/{run}/checkpoints/{file.id}/files/checkpoint.pt"
    answer = api.http.get(path)
    assert (answer.status_code, answer.content) == (200, content(3))
    assert answer.headers["etag"] == f'"{file.sha256}"'
    assert api.http.get(path, headers={"Range": "bytes=0-9"}).content == content(3)[:10]
    assert api.http.get(path, headers={"Range": "bytes=99999-"}).status_code == 416
    assert api.http.head(path).headers["content-length"] == str(file.bytes)
    assert api.http.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_what_a_run_keeps_no_longer_is_404_and_says_why(api: Api, tmp_path: Path) -> None:
    run = post(api, tmp_path)["id"]
    (old,) = stored(api, run, [3])
    path = f"{RUNS}/{run}/checkpoints/{old.id}/files/checkpoint.pt"
    assert api.http.get(path).status_code == 200
    api.storage.delete(checkpoint_key(run, old))  # between a look at the pointer and the reading
    stored_pointer = api.storage.read(pointer_key(run))
    for newer in (False, True):
        if newer:
            stored(api, run, [4])
        for method in ("GET", "HEAD"):
            assert api.http.request(method, path).status_code == 404
        told = api.http.get(path).json()
        assert (told["code"], "keep_checkpoints" in told["detail"]) == ("not_found", True)
    api.storage.put(pointer_key(run), stored_pointer)


def test_what_was_altered_in_storage_is_not_sent(api: Api, tmp_path: Path) -> None:
    run = post(api, tmp_path)["id"]
    (file,) = stored(api, run, [3])
    path = f"{RUNS}/{run}/checkpoints/{file.id}/files/checkpoint.pt"
    api.storage.put(checkpoint_key(run, file), content(3)[:-1] + b"?")
    answer = api.http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (500, "corrupt_data")
    api.storage.put(pointer_key(run), b'{"files": 3}')
    for damaged in (path, f"{RUNS}/{run}/checkpoints"):
        answer = api.http.get(damaged)
        assert (answer.status_code, answer.json()["code"]) == (409, "corrupt_data")
        assert "--from beginning" in answer.json()["detail"]


def test_what_is_no_checkpoint_of_a_run_is_404(api: Api, tmp_path: Path) -> None:
    run, job = post(api, tmp_path)["id"], post_synthesis(api)["id"]
    (file,) = stored(api, run, [3])
    here = f"checkpoints/{file.id}/files"
    for path in (
        f"{RUNS}/{new_id('run')}/checkpoints",
        f"{RUNS}/{job}/checkpoints",
        f"/v1/synthesis-jobs/{job}/checkpoints",
        f"{RUNS}/{new_id('run')}/{here}/checkpoint.pt",
        f"{RUNS}/{run}/{here}/last.pt",
        f"{RUNS}/{run}/{here}/best.safetensors",
        f"{RUNS}/{run}/{here}/../checkpoint.json",
        f"{RUNS}/{run}/checkpoints/{'0' * 16}/files/checkpoint.pt",
    ):
        assert api.http.get(path).status_code == 404, path


def test_it_outlives_redis_and_an_earlier_version_said_less(api: Api, tmp_path: Path) -> None:
    run = post(api, tmp_path)["id"]
    data = content(1)
    name, digest = "last.pt", hashlib.sha256(data).hexdigest()
    pointer = f'{{"files": [{{"name": "{name}", "bytes": {len(data)}, "sha256": "{digest}"}}], "earlier": []}}'
    api.storage.put(f"runs/{run}/checkpoints/{digest[:16]}-{name}", data)
    api.storage.put(pointer_key(run), pointer.encode())
    api.store.redis.flushdb()
    (found,) = api.http.get(f"{RUNS}/{run}/checkpoints").json()["data"]
    assert [found[field] for field in ("epoch", "stage", "step", "created_at", "metrics")] == [None] * 5
    assert api.http.get(f"{RUNS}/{run}/checkpoints/{found['id']}/files/checkpoint.pt").content == data


def test_another_keys_run_is_as_one_that_does_not_exist(redis_server: str, tmp_path: Path) -> None:
    settings = Settings(
        redis_url=database(redis_server, 9), storage_url=f"file://{tmp_path}/storage", api_keys=f"{A},{B}"
    )
    with serving(settings, tmp_path) as api:
        api.http.headers["Authorization"] = f"Bearer {A}"
        put_teacher(api)
        run = post(api, tmp_path)["id"]
        (file,) = stored(api, run, [3])
        for path in (f"{RUNS}/{run}/checkpoints", f"{RUNS}/{run}/checkpoints/{file.id}/files/checkpoint.pt"):
            assert api.http.get(path).status_code == 200
            for key, status in ((B, 404), ("wrong", 401)):
                refused = httpx.get(f"{api.url}{path}", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
                assert refused.status_code == status
