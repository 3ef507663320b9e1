"""Spans of requests: a real API, and a collector that reads what it sends."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dearkd.local.embedded_redis import free_port
from dearkd.settings import Settings
from tests.support.api_contents import post_synthesis, put_teacher
from tests.support.otlp_receiver import Collector, ReceivedSpan, collecting
from tests.support.services import Api, database, eventually, serving

pytestmark = pytest.mark.services

JOBS = "/v1/synthesis-jobs"
TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
"""Ids of W3C's own examples."""

Serve = Callable[..., AbstractContextManager[Api]]


@pytest.fixture
def serve(redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Starts an API with these variables in its environment, whose log is JSON."""
    settings = Settings(
        redis_url=database(redis_server, 4),
        storage_url=f"file://{tmp_path}/storage",
        cache_dir=tmp_path / "cache",
        log_format="json",
    )

    def start(**variables: str) -> AbstractContextManager[Api]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return serving(settings, tmp_path)

    return start


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def traced(serve: Serve, collector: Collector) -> Iterator[Api]:
    with serve(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="50") as api:
        yield api


def span_of(collector: Collector, request: str) -> ReceivedSpan:
    """The span of the request of that id, once it has come."""
    found: list[ReceivedSpan] = []

    def come() -> bool:
        found[:] = [
            span for span in collector.spans if span.attributes.get("http.response.header.x-request-id") == [request]
        ]
        return bool(found)

    eventually(come, seconds=30)
    assert len(found) == 1
    return found[0]


def lines(api: Api) -> list[dict[str, object]]:
    return [json.loads(line) for line in api.log.read_text().splitlines()]


def test_a_request_is_a_span_in_its_clients_trace_and_the_job_goes_on_below_it(
    traced: Api, collector: Collector
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CLIENT}-01", "X-Request-Id": "one", "User-Agent": "a test"}
    posted = traced.http.post(JOBS, json={"teacher": put_teacher(traced)}, headers=headers)
    assert posted.status_code == 202, posted.text
    job = posted.json()["id"]
    span = span_of(collector, "one")
    assert (span.trace, span.parent, span.kind, span.error) == (TRACE, CLIENT, "server", None)
    assert span.name == f"POST {JOBS}"
    assert (
        span.attributes.items()
        >= {
            "http.request.method": "POST",
            "http.route": JOBS,
            "http.response.status_code": 202,
            "url.path": JOBS,
            "url.scheme": "http",
            "user_agent.original": "a test",
            "client.address": "127.0.0.1",
            "dearkd.job.id": job,
        }.items()
    )
    assert (span.service, span.resource["process.pid"]) == ("dearkd-api", traced.process.pid)
    # The job knows of it, in Redis and in storage, and tells no client.
    assert traced.store.get(job).traceparent == f"00-{TRACE}-{span.id}-01"
    assert json.loads(traced.storage.read(f"jobs/{job}/job.json"))["traceparent"] == f"00-{TRACE}-{span.id}-01"
    assert TRACE not in posted.text + traced.http.get(f"{JOBS}/{job}").text + traced.http.get(JOBS).text


def test_a_span_bears_the_template_of_its_route_and_probes_have_none(traced: Api, collector: Collector) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/static/dashboard.js"):
        assert traced.http.get(path).status_code == 200
    for request, path in (("there", f"{JOBS}/syn-a"), ("nowhere", "/nowhere/x")):
        assert traced.http.get(path, headers={"X-Request-Id": request}).status_code == 404
    assert traced.http.get(JOBS, headers={"X-Request-Id": "refused", "Host": "evil.example"}).status_code == 421
    assert traced.http.request("BREW", "/nowhere", headers={"X-Request-Id": "odd"}).status_code in (404, 405)
    there, nowhere = span_of(collector, "there"), span_of(collector, "nowhere")
    assert (there.name, there.attributes["url.path"]) == (f"GET {JOBS}/{{identifier}}", f"{JOBS}/syn-a")
    assert (nowhere.name, "http.route" in nowhere.attributes) == ("GET", False)
    assert span_of(collector, "refused").attributes["http.response.status_code"] == 421
    assert span_of(collector, "odd").attributes["http.request.method"] == "_OTHER"
    assert [span.error for span in collector.spans] == [None] * 4
    assert len({span.trace for span in collector.spans}) == 4


@pytest.mark.parametrize(
    "given",
    [
        [f"00-{TRACE}-{CLIENT}"],
        [f"00-{'0' * 32}-{CLIENT}-01"],
        [f"ff-{TRACE}-{CLIENT}-01"],
        ["\xfc"],
        [f"00-{TRACE}-{CLIENT}-01"] * 2,
    ],
)
def test_what_names_no_trace_begins_one(traced: Api, collector: Collector, given: list[str]) -> None:
    headers = [("X-Request-Id", "it"), *(("traceparent", value.encode("latin-1")) for value in given)]
    assert traced.http.get(JOBS, headers=headers).status_code == 200
    span = span_of(collector, "it")
    assert (span.parent, span.trace == TRACE) == ("", False)


def test_an_error_of_the_server_is_one_of_its_span_and_its_lines_bear_the_ids(
    traced: Api, collector: Collector
) -> None:
    job = post_synthesis(traced)["id"]
    traced.store.redis.xadd(f"dearkd:job:{job}:events", {"type": "log", "at": "2026-01-01T00:00:00Z", "data": "{"})
    headers = {"X-Request-Id": "broken", "Connection": "close"}
    assert traced.http.get(f"{JOBS}/{job}/events", headers=headers).status_code == 500
    span = span_of(collector, "broken")
    assert span.error is not None
    assert span.attributes["http.response.status_code"] == 500
    assert span.attributes["error.type"] == "JSONDecodeError"
    assert span.events == ["exception"]
    Path(traced.settings.storage_url.removeprefix("file://")).rename(traced.log.with_name("away"))
    assert traced.http.get("/v1/teachers", headers={"X-Request-Id": "away"}).status_code == 503
    span = span_of(collector, "away")
    assert (span.error, span.attributes["error.type"]) == ("", "503")
    about = [line for line in lines(traced) if line.get("request_id") == "away"]
    assert about
    assert {(line["trace_id"], line["span_id"]) for line in about} == {(span.trace, span.id)}


def test_what_its_client_does_not_sample_is_not_sent_but_named(traced: Api, collector: Collector) -> None:
    teacher = put_teacher(traced)
    for flag, request in (("00", "unseen"), ("01", "seen")):
        headers = {"traceparent": f"00-{TRACE}-{CLIENT}-{flag}", "X-Request-Id": request}
        job = traced.http.post(JOBS, json={"teacher": teacher}, headers=headers).json()["id"]
        stored = traced.store.get(job).traceparent
        assert stored is not None
        assert (stored[3:35], stored[-2:]) == (TRACE, flag)
    span_of(collector, "seen")
    assert {tuple(span.attributes["http.response.header.x-request-id"]) for span in collector.spans} == {("seen",)}


def test_variables_of_the_standard_are_heeded(serve: Serve, collector: Collector) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_SERVICE_NAME": "ours",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    with serve(**variables) as api:
        assert api.http.get(JOBS, headers={"X-Request-Id": "last"}).status_code == 200
    # It has ended since, and what was left went out before that.
    assert [(span.service, span.resource["deployment.environment.name"]) for span in collector.spans] == [
        ("ours", "test")
    ]
    (request,) = collector.requests
    assert (request["authorization"], request["content-encoding"]) == ("Bearer x", "gzip")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "ENDPOINT", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "ENDPOINT", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    ],
)
def test_off_is_off(serve: Serve, collector: Collector, variables: dict[str, str]) -> None:
    given = {name: collector.url if value == "ENDPOINT" else value for name, value in variables.items()}
    with serve(**given) as api:
        headers = {"traceparent": f"00-{TRACE}-{CLIENT}-01"}
        posted = api.http.post(JOBS, json={"teacher": put_teacher(api)}, headers=headers)
        assert api.store.get(posted.json()["id"]).traceparent is None
    assert collector.requests == []
    assert [line for line in lines(api) if "trace_id" in line or "traces" in str(line["message"])] == []


def test_a_collector_that_is_away_delays_no_answer_and_the_end_by_little(serve: Serve, collector: Collector) -> None:
    collector.silent = True
    for endpoint in (f"http://127.0.0.1:{free_port()}", collector.url, "nonsense"):
        with serve(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="50") as api:
            teacher = put_teacher(api)
            began = time.monotonic()
            for _ in range(20):
                assert api.http.post(JOBS, json={"teacher": teacher}).status_code == 202
            assert time.monotonic() - began < 10
            api.http.close()
            began = time.monotonic()
            os.kill(api.process.pid, signal.SIGTERM)
            api.process.wait(20)
            assert time.monotonic() - began < 8
        told = [line for line in lines(api) if str(line["logger"]).startswith("opentelemetry")]
        assert len(told) <= 3
        api.log.unlink()


def test_an_exporter_that_no_package_brings_is_told_once_and_stops_nothing(serve: Serve) -> None:
    with serve(OTEL_TRACES_EXPORTER="zipkin") as api:
        for _ in range(3):
            post_synthesis(api)
    told = [str(line["message"]) for line in lines(api) if line["level"] == "WARNING"]
    assert len(told) == 1
    assert "zipkin" in told[0]
    assert "pip install 'dearkd[otel]'" in told[0]
