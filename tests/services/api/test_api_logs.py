"""Ids of requests, in answers and in the log."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dearkd.settings import Settings
from tests.support.api_contents import post_synthesis, put_teacher
from tests.support.services import Api, database, eventually, serving

pytestmark = pytest.mark.services

HEADER = "X-Request-Id"


@pytest.fixture(params=["json", "text"])
def logged(request: pytest.FixtureRequest, redis_server: str, tmp_path: Path) -> Iterator[Api]:
    settings = Settings(
        redis_url=database(redis_server, 3),
        storage_url=f"file://{tmp_path}/storage",
        cache_dir=tmp_path / "cache",
        log_format=request.param,
    )
    with serving(settings, tmp_path) as api:
        yield api


def lines_of(api: Api, identifier: str) -> list[str]:
    """The lines of the log that are about a request."""
    text = api.log.read_text()
    if api.settings.log_format == "text":
        return [line for line in text.splitlines() if line.endswith(f" (request {identifier})")]
    found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    return [line["message"] for line in found if line.get("request_id") == identifier]


def test_what_a_request_leaves_in_the_log_bears_its_id(logged: Api) -> None:
    teacher, root = put_teacher(logged), Path(logged.settings.storage_url.removeprefix("file://"))
    assert logged.http.get(f"/v1/teachers/{teacher}", headers={HEADER: "before"}).status_code == 200
    root.rename(root.with_name("away"))
    answers = {name: logged.http.get(f"/v1/teachers/{teacher}", headers={HEADER: name}) for name in ("one", "two")}
    root.with_name("away").rename(root)
    assert {name: (a.status_code, a.headers[HEADER]) for name, a in answers.items()} == {
        "one": (503, "one"),
        "two": (503, "two"),
    }
    for name in answers:
        assert any(f"GET /v1/teachers/{teacher}" in line for line in lines_of(logged, name))
    assert lines_of(logged, "before") == []


def test_an_error_of_the_server_bears_it_too(logged: Api) -> None:
    job = post_synthesis(logged)["id"]
    event = {"type": "log", "at": "2026-01-01T00:00:00Z", "data": "{"}  # which no version writes
    logged.store.redis.xadd(f"dearkd:job:{job}:events", event)
    answer = logged.http.get(f"/v1/synthesis-jobs/{job}/events", headers={HEADER: "broken.1"})
    assert (answer.status_code, answer.headers[HEADER]) == (500, "broken.1")
    if logged.settings.log_format == "json":
        eventually(lambda: lines_of(logged, "broken.1"))
        lines = [json.loads(line) for line in logged.log.read_text().splitlines()]
        assert [line for line in lines if "JSONDecodeError" in line.get("exception", "")][-1][
            "request_id"
        ] == "broken.1"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\x1b[2J", 'a"', "-a", "ü"])
def test_an_id_that_is_no_token_is_replaced(api: Api, given: str) -> None:
    answer = api.http.get("/healthz", headers={HEADER: given.encode()})
    assert re.fullmatch("[0-9a-f]{16}", answer.headers[HEADER])
    assert api.http.get("/healthz", headers={HEADER: given.encode()}).headers[HEADER] != answer.headers[HEADER]


def test_two_ids_are_none(api: Api) -> None:
    answer = api.http.get("/healthz", headers=[(HEADER, "a"), (HEADER, "b")])
    assert re.fullmatch("[0-9a-f]{16}", answer.headers[HEADER])


@pytest.mark.parametrize("path", ["/healthz", "/v1/synthesis-jobs", "/nowhere", "/", "/static/dashboard.js"])
def test_every_answer_bears_one_a_refusal_too(api: Api, path: str) -> None:
    assert api.http.get(path, headers={HEADER: "a:1_b-c.2"}).headers[HEADER] == "a:1_b-c.2"
    refused = api.http.post(path, headers={HEADER: "r", "Origin": "https://evil.example"})
    assert (refused.status_code, refused.headers[HEADER]) == (403, "r")
