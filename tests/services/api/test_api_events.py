"""Events as pages and as server-sent events, read by another project's parser."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse

from dearkd.jobs.records import EVENTS, add_event
from dearkd.redis_client import job_key
from dearkd.settings import Settings
from tests.support.api_contents import Json, finish_synthesis, post_synthesis, put_teacher
from tests.support.services import Api, database, eventually, serving

pytestmark = [pytest.mark.services, pytest.mark.timeout(60)]

JOBS = "/v1/synthesis-jobs"


@contextmanager
def listening(api: Api, path: str, **headers: str) -> Iterator[Iterator[ServerSentEvent]]:
    with (
        httpx.Client(base_url=api.url, timeout=30, headers=headers) as http,
        connect_sse(http, "GET", path) as source,
    ):
        assert source.response.status_code == 200
        assert source.response.headers["content-type"].startswith("text/event-stream")
        assert source.response.headers["cache-control"] == "no-cache"
        # What has no data is no event to the standard, but to this parser.
        yield (event for event in source.iter_sse() if event.data)


def pages(api: Api, path: str) -> list[Json]:
    found: list[Json] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        answer = api.http.get(path, params=params).json()
        found += answer["data"]
        if not answer["has_more"]:
            return found
        params["after"] = answer["data"][-1]["id"]


def test_a_stream_brings_the_pages_and_then_what_happens_and_ends_with_the_job(api: Api, tmp_path: Path) -> None:
    job = post_synthesis(api)
    path = f"{JOBS}/{job['id']}/events"
    for number in range(5):
        add_event(api.store.redis, job["id"], "log", {"message": f"line {number}"})
    with listening(api, path) as stream:
        first = [next(stream) for _ in range(6)]
        assert [event.json() for event in first] == pages(api, path)
        assert [(event.id, event.event) for event in first] == [(e["id"], e["type"]) for e in pages(api, path)]
        add_event(api.store.redis, job["id"], "preview", {"bytes": 3})
        event = next(stream)
        assert (event.event, event.json()["data"], set(event.json())) == (
            "preview",
            {"bytes": 3},
            {"id", "at", "type", "data"},
        )
        assert api.http.post(f"{JOBS}/{job['id']}/cancel").status_code == 202
        rest = [*stream]  # it ends by itself
    assert rest[-1].json()["data"] == {"status": "canceled"}
    assert [e.json() for e in [*first, event, *rest]] == pages(api, path)


def test_a_broken_connection_goes_on_where_it_was(api: Api) -> None:
    job = post_synthesis(api)
    path = f"{JOBS}/{job['id']}/events"
    for number in range(10):
        add_event(api.store.redis, job["id"], "log", {"message": str(number)})
    whole = pages(api, path)
    with listening(api, path) as stream:
        seen = [next(stream) for _ in range(4)]
    with listening(api, path, **{"Last-Event-ID": seen[-1].id}) as stream:
        seen += [next(stream) for _ in range(len(whole) - 4)]
    assert [event.json() for event in seen] == whole
    with listening(api, f"{path}?after={whole[7]['id']}") as stream:
        assert next(stream).id == whole[8]["id"]
    api.http.post(f"{JOBS}/{job['id']}/cancel")
    last = pages(api, path)[-1]["id"]
    # Browsers would connect again and again to what has ended: 204 tells them not to.
    done = api.http.get(path, headers={"accept": "text/event-stream", "Last-Event-ID": last})
    assert (done.status_code, done.content) == (204, b"")


def test_the_stream_of_all_jobs_begins_now_and_names_them(api: Api) -> None:
    before = post_synthesis(api)
    with listening(api, "/v1/events") as stream, ThreadPoolExecutor(1) as pool:
        waited = pool.submit(next, stream)
        eventually(lambda: bool(api.store.redis.client_list()) and _reads_events(api))
        job = post_synthesis(api)
        event = waited.result(timeout=30)
        assert (event.json()["job"], event.json()["data"]) == (job["id"], {"status": "queued"})
        last = event.id
    add_event(api.store.redis, before["id"], "log", {"message": "x"})
    with listening(api, "/v1/events", **{"Last-Event-ID": last}) as stream:
        assert next(stream).json()["job"] == before["id"]
    assert [event["job"] for event in pages(api, "/v1/events")] == [before["id"], job["id"], before["id"]]


def _reads_events(api: Api) -> bool:
    return any(client.get("cmd") == "xread" for client in api.store.redis.client_list())


@pytest.mark.parametrize("path", ["/v1/events", "/v1/synthesis-jobs/{job}/events"])
@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_what_is_no_id_is_refused(api: Api, path: str, accept: str) -> None:
    path = path.format(job=post_synthesis(api)["id"])
    for wrong in ("x", "1", "1-2-3", "$", "+"):
        answer = api.http.get(path, params={"after": wrong}, headers={"accept": accept})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/after")
    if accept == "text/event-stream":
        assert api.http.get(path, headers={"accept": accept, "Last-Event-ID": "x"}).status_code == 422


def test_each_key_hears_of_its_own_jobs(redis_server: str, tmp_path: Path) -> None:
    keys = ["a-key-of-ours-0123456789", "a-key-of-theirs-012345678"]
    settings = Settings(
        redis_url=database(redis_server, 7), storage_url=f"file://{tmp_path}/storage", api_keys=",".join(keys)
    )
    with serving(settings, tmp_path) as api:
        teacher = put_teacher(api)
        jobs = []
        for key in keys:
            headers = {"authorization": f"Bearer {key}"}
            jobs.append(api.http.post(JOBS, json={"teacher": teacher}, headers=headers).json()["id"])
        for key, mine, theirs in zip(keys, jobs, reversed(jobs), strict=True):
            headers = {"authorization": f"Bearer {key}"}
            assert api.http.get(f"{JOBS}/{theirs}/events", headers=headers).status_code == 404
            found = api.http.get("/v1/events", params={"limit": 1}, headers=headers).json()["data"]
            assert [event["job"] for event in found] == [mine]
            with listening(api, "/v1/events?after=0-1", authorization=f"Bearer {key}") as stream:
                assert next(stream).json()["job"] == mine
        assert api.http.get("/v1/events").status_code == 401


def test_there_is_a_bound_on_streams(api: Api, tmp_path: Path) -> None:
    """And what is closed makes room again."""
    job = post_synthesis(api)
    path = f"{JOBS}/{job['id']}/events"
    with httpx.Client(base_url=api.url, timeout=30, limits=httpx.Limits(max_connections=None)) as http:
        open_streams = []
        try:
            for _ in range(128):
                request = http.build_request("GET", path, headers={"accept": "text/event-stream"})
                answer = http.send(request, stream=True)
                assert answer.status_code == 200
                chunks = answer.iter_raw()
                assert next(chunks), "it has begun"
                open_streams.append((answer, chunks))
            with api.http.stream("GET", path, headers={"accept": "text/event-stream"}) as full:
                assert full.status_code == 429
                assert json.loads(full.read())["code"] == "too_many_streams"
            assert api.http.get(path).status_code == 200, "pages are answered all the same"
        finally:
            for answer, _ in open_streams:
                answer.close()

    def room() -> bool:
        with api.http.stream("GET", path, headers={"accept": "text/event-stream"}) as again:
            return again.status_code == 200

    eventually(room)


def test_a_server_that_stops_ends_its_streams(redis_server: str, tmp_path: Path) -> None:
    settings = Settings(redis_url=database(redis_server, 8), storage_url=f"file://{tmp_path}/storage")
    with serving(settings, tmp_path) as api, listening(api, "/v1/events") as stream, ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, stream)
        time.sleep(0.2)
        api.process.terminate()
        assert rest.result(timeout=20) == []
        assert api.process.wait(timeout=20) == 0


def test_the_streams_of_redis_are_bounded(api: Api) -> None:
    job = post_synthesis(api)
    pipe = api.store.redis.pipeline(transaction=False)
    for number in range(12_000):
        add_event(pipe, job["id"], "log", {"message": str(number)})
    pipe.execute()
    assert api.store.redis.xlen(f"{job_key(job['id'])}:events") < 2500
    assert api.store.redis.xlen(EVENTS) < 11_000
    assert pages(api, f"{JOBS}/{job['id']}/events?limit=200")[-1]["data"]["message"] == "11999"


def test_a_finished_job_has_its_last_event(api: Api, tmp_path: Path) -> None:
    job = post_synthesis(api)
    finish_synthesis(api, job, tmp_path)
    with listening(api, f"{JOBS}/{job['id']}/events") as stream:
        assert [*stream][-1].json()["data"] == {"status": "succeeded"}
