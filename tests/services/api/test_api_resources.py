"""Teachers, datasets and models that are there: lists, files, deletion."""

import hashlib
import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dearkd.jobs.ledger import Ledger
from tests.support.api_contents import claim, pointers, post_synthesis, put_dataset, put_model, put_teacher
from tests.support.services import Api

pytestmark = pytest.mark.services


def test_lists_are_newest_first_and_paged(api: Api, tmp_path: Path) -> None:
    for name, put in (
        ("teachers", lambda: put_teacher(api)),
        ("datasets", lambda: put_dataset(api, tmp_path, images=10)),
        ("models", lambda: put_model(api)),
    ):
        made = [put() for _ in range(3)][::-1]
        path = f"/v1/{name}"
        assert [item["id"] for item in api.http.get(path).json()["data"]] == made
        page = api.http.get(path, params={"limit": 1, "after": made[0]}).json()
        assert ([item["id"] for item in page["data"]], page["has_more"]) == (made[1:2], True)
        last = api.http.get(path, params={"limit": 2, "after": made[0]}).json()
        assert ([item["id"] for item in last["data"]], last["has_more"]) == (made[1:], False)
        assert api.http.get(f"{path}/{made[0]}").json()["id"] == made[0]
        for query in ("limit=0", "limit=201", "after=x", "after=run-00000000000-00000000"):
            assert api.http.get(f"{path}?{query}").status_code == 422
        for identifier in ("x", "..%2f..", f"{made[0]}x", made[0].upper()):
            assert api.http.get(f"{path}/{identifier}").status_code == 404


def test_a_dataset_shows_its_manifest(api: Api, tmp_path: Path) -> None:
    identifier = put_dataset(api, tmp_path, images=10)
    dataset = api.http.get(f"/v1/datasets/{identifier}").json()
    assert (dataset["num_samples"], dataset["teacher"], dataset["spec"]) == (10, None, None)
    assert dataset["classes"][3] == {"index": 3, "name": "3", "samples": 1}
    content = api.http.get(f"/v1/datasets/{identifier}/files/{dataset['shards'][0]['name']}").content
    assert len(content) == dataset["shards"][0]["bytes"]
    assert hashlib.sha256(content).hexdigest() == dataset["shards"][0]["sha256"]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert len(tar.getmembers()) == 30


def test_only_a_datasets_own_files_are_served(api: Api, tmp_path: Path) -> None:
    identifier = put_dataset(api, tmp_path, images=10)
    files = f"/v1/datasets/{identifier}/files"
    for picture in ("preview.png", "timelapse.webp"):
        api.storage.put(f"datasets/{identifier}/{picture}", b"picture")
    api.storage.put(f"datasets/{identifier}/train-000001.tar", b"not in the manifest")
    for name, kind in (
        ("train-000000.tar", "application/x-tar"),
        ("_info.json", "application/json"),
        ("dataset.json", "application/json"),
        ("preview.png", "image/png"),
        ("timelapse.webp", "image/webp"),
    ):
        answer = api.http.get(f"{files}/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    for name in ("train-000001.tar", "README.md", "x", "..%2f..%2fteachers", "%2fetc%2fpasswd", "./dataset.json%00"):
        answer = api.http.get(f"{files}/{name}")
        assert (answer.status_code, pointers(answer)) == (404, [])
    assert api.http.get("/v1/datasets/ds-00000000000-00000000/files/dataset.json").status_code == 404


def test_a_models_files(api: Api) -> None:
    files = f"/v1/models/{put_model(api)}/files"
    assert api.http.get(f"{files}/config.json").json() == {}
    assert api.http.get(f"{files}/model.safetensors").status_code == 404


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        (None, 200, (0, 100)),
        ("bytes=0-9", 206, (0, 10)),
        ("bytes=90-", 206, (90, 100)),
        ("bytes=90-1000", 206, (90, 100)),
        ("bytes=-10", 206, (90, 100)),
        ("bytes=-1000", 206, (0, 100)),
        ("bytes=99-99", 206, (99, 100)),
        ("bytes=100-", 416, None),
        ("bytes=-0", 416, None),
        # What cannot be understood is ignored (RFC 9110, section 14.2).
        ("bytes=9-0", 200, (0, 100)),
        ("bytes=0-1,5-6", 200, (0, 100)),
        ("items=0-9", 200, (0, 100)),
        ("bytes=-", 200, (0, 100)),
    ],
)
def test_ranges(api: Api, tmp_path: Path, asked: str | None, status: int, span: tuple[int, int] | None) -> None:
    identifier = put_dataset(api, tmp_path, images=1, num_classes=1)
    content = bytes(range(100))
    api.storage.put(f"datasets/{identifier}/preview.png", content)
    headers = {"range": asked} if asked else {}
    path = f"/v1/datasets/{identifier}/files/preview.png"
    answer = api.http.get(path, headers=headers)
    assert answer.status_code == status
    if span is None:
        assert answer.headers["content-range"] == "bytes */100"
        assert pointers(answer) == []
        return
    start, stop = span
    assert answer.content == content[start:stop]
    assert answer.headers.get("content-range") == (f"bytes {start}-{stop - 1}/100" if status == 206 else None)
    assert answer.headers["accept-ranges"] == "bytes"
    head = api.http.head(path, headers=headers)
    assert (head.status_code, head.content) == (status, b"")
    assert head.headers["content-length"] == answer.headers["content-length"] == str(stop - start)


def test_a_shard_is_cached_and_resumed_by_its_hash(api: Api, tmp_path: Path) -> None:
    identifier = put_dataset(api, tmp_path, images=1, num_classes=1)
    shard = api.http.get(f"/v1/datasets/{identifier}").json()["shards"][0]
    path = f"/v1/datasets/{identifier}/files/{shard['name']}"
    etag = api.http.get(path).headers["etag"]
    assert etag == f'"{shard["sha256"]}"'
    assert api.http.get(path, headers={"if-none-match": etag}).status_code == 304
    assert api.http.get(path, headers={"if-none-match": '"other"'}).status_code == 200
    assert api.http.get(path, headers={"range": "bytes=0-1", "if-range": etag}).status_code == 206
    assert api.http.get(path, headers={"range": "bytes=0-1", "if-range": '"other"'}).status_code == 200
    api.storage.delete(f"datasets/{identifier}/{shard['name']}")
    gone = api.http.get(path)
    assert (gone.status_code, "gone" in gone.json()["detail"]) == (404, True)


def test_what_is_deleted_leaves_nothing_behind(api: Api, tmp_path: Path) -> None:
    for path, identifier in (
        ("teachers", put_teacher(api)),
        ("datasets", put_dataset(api, tmp_path, images=1, num_classes=1)),
        ("models", put_model(api)),
    ):
        answer = api.http.delete(f"/v1/{path}/{identifier}")
        assert (answer.status_code, answer.content) == (204, b"")
        assert api.http.get(f"/v1/{path}/{identifier}").status_code == 404
        assert api.http.delete(f"/v1/{path}/{identifier}").status_code == 404
        assert list(api.storage.objects(path)) == []


def test_what_a_job_uses_cannot_be_deleted(api: Api, tmp_path: Path) -> None:
    teacher, evaluation = put_teacher(api), put_dataset(api, tmp_path)
    dataset = put_dataset(api, tmp_path, teacher=teacher, spec={"flip": 0.0})
    job = post_synthesis(api, teacher=teacher)
    run = api.http.post("/v1/training-runs", json={"dataset": dataset, "eval_dataset": evaluation}).json()

    def delete(kind: str, identifier: str) -> int:
        answer = api.http.delete(f"/v1/{kind}/{identifier}")
        assert answer.status_code == 204 or answer.json()["code"] == "in_use"
        return answer.status_code

    assert delete("teachers", teacher) == 409
    assert delete("datasets", dataset) == delete("datasets", evaluation) == 409
    api.http.post(job["links"]["cancel"])
    assert delete("teachers", teacher) == 409, "the run distils it, too"
    held = claim(api, "training")
    api.http.post(run["links"]["cancel"])
    assert delete("datasets", dataset) == 409, "it is not canceled yet"
    Ledger(api.store).release(held)
    assert delete("datasets", dataset) == delete("datasets", evaluation) == delete("teachers", teacher) == 204


def test_the_result_of_a_job_that_runs_again_cannot_be_deleted(api: Api, tmp_path: Path) -> None:
    job = post_synthesis(api)
    dataset = put_dataset(api, tmp_path, id=f"ds-{job['id'].partition('-')[2]}")
    assert api.http.delete(f"/v1/datasets/{dataset}").json()["code"] == "in_use"
    blocked = api.http.post("/v1/training-runs", json={"dataset": job["id"]}).json()
    model = put_model(api, id=f"mdl-{blocked['id'].partition('-')[2]}")
    assert api.http.delete(f"/v1/models/{model}").json()["code"] == "in_use"


def test_a_teacher_that_is_deleted_while_a_job_on_it_is_posted_goes_or_stays_but_never_both(api: Api) -> None:
    outcomes = set()
    with ThreadPoolExecutor(2) as pool:
        for number in range(30):
            teacher = put_teacher(api)
            acts = [
                lambda teacher=teacher: api.http.post("/v1/synthesis-jobs", json={"teacher": teacher}).status_code,
                lambda teacher=teacher: api.http.delete(f"/v1/teachers/{teacher}").status_code,
            ]
            if number % 2:
                acts.reverse()
            answers = list(pool.map(lambda act: act(), acts))
            posted, deleted = reversed(answers) if number % 2 else answers
            outcomes.add((posted, deleted))
            assert (api.http.get(f"/v1/teachers/{teacher}").status_code == 200) == (posted == 202)
    assert outcomes <= {(202, 409), (422, 204)}
