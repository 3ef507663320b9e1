"""A store that a newer version has written to: what cannot be read is named on its page and in lists and hides none."""

import json
from pathlib import Path

import pytest

from dearkd.answers import StoredPage
from dearkd.client import Client
from tests.support.api_contents import post_synthesis, put_dataset, put_model, put_teacher
from tests.support.services import Api

pytestmark = pytest.mark.services


def put_all(api: Api, tmp_path: Path) -> dict[str, str]:
    """One of each sort: the id by the collection."""
    return {
        "teachers": put_teacher(api),
        "datasets": put_dataset(api, tmp_path, images=10),
        "models": put_model(api),
        "synthesis-jobs": post_synthesis(api)["id"],
    }


def make_newer(api: Api, collection: str, identifier: str) -> None:
    if collection == "synthesis-jobs":
        api.store.redis.hset(f"dearkd:job:{identifier}", mapping={"schema_version": "9", "progress": "[]"})
        return
    key = f"{collection}/{identifier}/{collection[:-1]}.json"
    api.storage.put(key, json.dumps({"id": identifier, "schema_version": 9}).encode())


def test_it_is_named_everywhere_and_hides_nothing(api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = put_all(api, tmp_path), put_all(api, tmp_path)
    for collection, identifier in theirs.items():
        make_newer(api, collection, identifier)
        answer = api.http.get(f"/v1/{collection}")
        listed = StoredPage[dict[str, object]].model_validate_json(answer.content)
        assert ours[collection] in [item["id"] for item in listed.data]
        assert [one.id for one in listed.unreadable] == [identifier]
        assert "of schema 9" in listed.unreadable[0].reason
        assert "upgrade dearkd" in listed.unreadable[0].reason
        answer = api.http.get(f"/v1/{collection}/{identifier}")
        assert (answer.status_code, answer.json()["code"]) == (409, "newer_version")
        assert answer.json()["detail"] == listed.unreadable[0].reason
        page = api.http.get("/" if collection == "synthesis-jobs" else f"/{collection}")
        assert page.status_code == 200
        assert f'id="unreadable-{identifier}"' in page.text
        assert ours[collection] in page.text
        page = api.http.get(f"/{collection}/{identifier}".replace("synthesis-jobs", "jobs"))
        assert page.status_code == 409
        assert "schema 9" in page.text
    with Client(api.url) as client:
        assert ours["teachers"] in [one.id for one in client.list_teachers()]
    assert f"{theirs['teachers']} is not listed" in caplog.text


def test_nothing_of_it_is_deleted_or_used(api: Api, tmp_path: Path) -> None:
    theirs = put_all(api, tmp_path)
    free = put_teacher(api)
    for collection in ("teachers", "datasets", "models"):
        make_newer(api, collection, theirs[collection])
        answer = api.http.delete(f"/v1/{collection}/{theirs[collection]}")
        assert (answer.status_code, answer.json()["code"]) == (409, "newer_version")
        assert api.storage.exists(f"{collection}/{theirs[collection]}/{collection[:-1]}.json")
    answer = api.http.post("/v1/synthesis-jobs", json={"teacher": theirs["teachers"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "newer_version")
    answer = api.http.post("/v1/training-runs", json={"dataset": theirs["datasets"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "newer_version")
    make_newer(api, "synthesis-jobs", theirs["synthesis-jobs"])
    answer = api.http.delete(f"/v1/teachers/{free}")
    assert (answer.status_code, answer.json()["code"]) == (409, "in_use"), "what the job uses is not known"
    assert theirs["synthesis-jobs"] in answer.json()["detail"]
