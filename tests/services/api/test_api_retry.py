"""What a retry may be asked for."""

import json
from typing import Any

import pytest

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import JobError, dataset_of
from tests.support.api_contents import Payload, claim, pointers, post_synthesis
from tests.support.services import Api

pytestmark = pytest.mark.services


def failed(api: Api) -> dict[str, Any]:
    """A job with one of two shards, that failed."""
    job = post_synthesis(api)
    ledger = Ledger(api.store)
    api.storage.put(f"datasets/{dataset_of(job['id'])}/train-000000.tar", b"first")
    ledger.done(claim(api), Made(samples=10, name="train-000000.tar", bytes=5))
    ledger.fail(job["id"], JobError(code="corrupt_data", message="x", retryable=False), claim(api))
    return job


class Made(Payload):
    name: str
    bytes: int


@pytest.mark.parametrize(
    ("content", "kept"),
    [(None, True), (b"", True), (b"{}", True), (b'{"from": "last"}', True), (b'{"from": "beginning"}', False)],
)
def test_a_retry_goes_on_or_starts_over(api: Api, content: bytes | None, kept: bool) -> None:
    job = failed(api)
    headers = {"content-type": "application/json"} if content else {}
    again = api.http.post(job["links"]["retry"], content=content, headers=headers)
    assert (again.status_code, again.json()["status"], again.json()["attempt"]) == (202, "queued", 2)
    assert api.storage.exists(f"datasets/{dataset_of(job['id'])}/train-000000.tar") == kept
    assert claim(api).unit == ("1" if kept else "0")
    assert ("from the beginning" in api.http.get(job["links"]["log"]).text) == (not kept)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"from": "start"}, "/from"),
        ({"from": "Beginning"}, "/from"),
        ({"from": None}, "/from"),
        ({"from": ["beginning"]}, "/from"),
        ({"from": 0}, "/from"),
        ({"form": "beginning"}, "/form"),
        ({"from": "beginning", "force": True}, "/force"),
        ({"start": "beginning"}, "/start"),
        ([], ""),
        ("beginning", ""),
        (None, ""),
    ],
)
def test_anything_else_is_refused_and_changes_nothing(api: Api, body: Any, pointer: str) -> None:
    job = failed(api)
    headers = {"content-type": "application/json"}
    refused = api.http.post(job["links"]["retry"], content=json.dumps(body), headers=headers)
    assert (refused.status_code, pointers(refused)) == (422, [pointer])
    if pointer == "/from":
        assert "'last' or 'beginning'" in refused.json()["detail"]
    assert api.http.get(job["links"]["self"]).json()["status"] == "failed"
    assert api.storage.exists(f"datasets/{dataset_of(job['id'])}/train-000000.tar")
