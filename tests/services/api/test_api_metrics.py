"""`GET /metrics` of a real API after real requests and jobs, its table in the manual, and the dashboard's queries."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dearkd.jobs.deaths import InspectorDeath, holder, note_inspector_death
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.measures import IMAGES, SHARD_SECONDS, STEP_SECONDS, TRAINED_IMAGES
from dearkd.jobs.model import JobError
from dearkd.jobs.offers import Offer, advertise
from dearkd.local.embedded_redis import embedded_redis
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd.work.attempt import Attempt
from dearkd.work.worker import drain
from tests.support.api_contents import Payload, claim, post_synthesis, put_teacher
from tests.support.documents import read, table
from tests.support.ledger_steps import expire_all
from tests.support.scrapes import Scrape, faults, scrape, selectors
from tests.support.services import Api, eventually, inspecting, serving

pytestmark = pytest.mark.services

JOBS = "/v1/synthesis-jobs"


def measured(attempt: Attempt) -> None:
    """What the services measure at their work, and what they do then."""
    attempt.measures.count(IMAGES, by=10)
    attempt.measures.observe(SHARD_SECONDS, 2.5)
    attempt.measures.observe(STEP_SECONDS, 0.02)
    attempt.measures.count(TRAINED_IMAGES, by=16)
    attempt.stop_reporting()
    attempt.ledger.done(attempt.claim, Payload(samples=10))


def lost(api: Api) -> None:
    """A unit whose worker died, and one whose worker fell silent."""
    ledger = Ledger(api.store)
    post_synthesis(api, parallelism=2)
    claim(api)
    ledger.expire(holder(os.getppid(), os.getpid()), "was killed by SIGKILL")
    ledger.reap(max_deaths=9)
    claim(api)
    expire_all(ledger)
    ledger.reap(max_deaths=9)


@pytest.fixture
def busy(api: Api) -> Scrape:
    """The metrics of an API after something of everything."""
    handler = signal.getsignal(signal.SIGTERM)  # a worker's loop puts its own in place
    post_synthesis(api)
    assert drain("synthesis", measured, api.settings) >= 2
    signal.signal(signal.SIGTERM, handler)
    lost(api)
    api.http.get("/nowhere")
    broken = post_synthesis(api)["id"]
    event = {"type": "log", "at": "2026-01-01T00:00:00Z", "data": "{"}  # which no version writes
    api.store.redis.xadd(f"dearkd:job:{broken}:events", event)
    # The server closes the connection after such an answer: none may be open for the next request.
    assert api.http.get(f"{JOBS}/{broken}/events", headers={"Connection": "close"}).status_code == 500
    found: list[Scrape] = []

    def complete() -> bool:
        found.append(scrape(api.http))
        return found[-1].value("dearkd_synthesised_images_total") > 0

    eventually(complete)
    return found[-1]


def test_jobs_and_queues_are_those_of_redis(api: Api) -> None:
    teacher = put_teacher(api)
    oldest = post_synthesis(api, teacher=teacher)
    for _ in range(2):
        post_synthesis(api, teacher=teacher)
    run = api.http.post("/v1/training-runs", json={"dataset": oldest["id"]})
    assert run.status_code == 202, run.text
    api.http.post(f"{JOBS}/{post_synthesis(api, teacher=teacher)['id']}/cancel").raise_for_status()
    accepted = datetime.now(UTC) - timedelta(hours=1)
    api.store.redis.hset(f"dearkd:job:{oldest['id']}", "created_at", accepted.isoformat())
    eventually(lambda: scrape(api.http).value("dearkd_jobs", kind="synthesis", status="canceled") == 1)
    found = scrape(api.http)
    assert found.value("dearkd_redis_up") == 1
    assert found.value("dearkd_jobs", kind="synthesis", status="queued") == 3
    assert found.value("dearkd_jobs", kind="training", status="blocked") == 1
    assert found.value("dearkd_queue_jobs", kind="synthesis") == 3
    assert found.value("dearkd_queue_jobs", kind="training") == 0
    assert 3600 <= found.value("dearkd_queue_oldest_seconds", kind="synthesis") < 7200
    assert found.value("dearkd_queue_oldest_seconds", kind="training") == 0
    assert found.value("dearkd_queue_wakeups", kind="synth") == api.store.redis.llen("rq:queue:synth") > 0
    assert found.value("dearkd_leases") == 0
    claim(api)  # of the oldest
    eventually(lambda: scrape(api.http).value("dearkd_leases") == 1)
    found = scrape(api.http)
    assert found.value("dearkd_jobs", kind="synthesis", status="running") == 1
    assert found.value("dearkd_jobs", kind="synthesis", status="queued") == 2
    assert found.value("dearkd_queue_oldest_seconds", kind="synthesis") < 3600


def test_as_many_workers_are_wanted_as_there_is_work_for(api: Api) -> None:
    def wanted(kind: str) -> float:
        return scrape(api.http).value("dearkd_workers_wanted", kind=kind)

    teacher = put_teacher(api)
    wide = post_synthesis(api, teacher=teacher, parallelism=64)
    units = api.store.redis.zcard(f"dearkd:job:{wide['id']}:units")
    assert 1 < units < 64
    eventually(lambda: wanted("synth") == units)
    narrow = post_synthesis(api, teacher=teacher)
    eventually(lambda: wanted("synth") == units + 1)
    # Who is at work counts on: a scaler that took it away would undo what it does.
    assert claim(api).job == wide["id"]
    eventually(lambda: scrape(api.http).value("dearkd_leases") == 1)
    assert wanted("synth") == units + 1
    # A run that is blocked can use none, nor can what is paused or has ended.
    assert api.http.post("/v1/training-runs", json={"dataset": narrow["id"]}).status_code == 202
    api.http.post(f"{JOBS}/{narrow['id']}/pause").raise_for_status()
    eventually(lambda: wanted("synth") == units)
    assert wanted("trainer") == 0
    api.http.post(f"{JOBS}/{wide['id']}/cancel").raise_for_status()
    eventually(lambda: wanted("synth") == 0)
    # What nobody who is there can take counts as one in all: more of the same could not either.
    advertise(api.store.redis, "synth", Offer(device="cpu", name="cpu", memory_bytes=2**33, compiler=False))
    for_a_gpu = [post_synthesis(api, teacher=teacher, parallelism=64, resources={"device": "cuda"}) for _ in range(2)]
    eventually(lambda: wanted("synth") == 1)
    for job in for_a_gpu:
        api.http.post(f"{JOBS}/{job['id']}/cancel").raise_for_status()
    eventually(lambda: wanted("synth") == 0)
    # Nor can one that waits for its next try.
    tried = post_synthesis(api, teacher=teacher, max_retries=1)
    eventually(lambda: wanted("synth") == 1)
    ledger = Ledger(api.store)
    error = JobError(code="storage_unavailable", message="away", retryable=True)
    held = ledger.claim("synthesis", 60.0)
    assert held is not None
    ledger.fail(tried["id"], error, held)
    assert api.http.get(f"{JOBS}/{tried['id']}").json()["retry_at"]
    eventually(lambda: wanted("synth") == 0)


def test_a_damaged_record_hides_its_age_alone(api: Api) -> None:
    job = post_synthesis(api)
    api.store.redis.hset(f"dearkd:job:{job['id']}", "created_at", "yesterday")
    eventually(lambda: str(scrape(api.http).value("dearkd_queue_oldest_seconds", kind="synthesis")) == "nan")
    assert scrape(api.http).value("dearkd_queue_jobs", kind="synthesis") == 1


def test_what_workers_measure_reaches_it_through_redis(api: Api) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    post_synthesis(api)
    performed = drain("synthesis", measured, api.settings)
    signal.signal(signal.SIGTERM, handler)
    lost(api)
    note_inspector_death(api.store.redis, "tch-x", InspectorDeath(cause="was killed by SIGKILL"))
    eventually(lambda: scrape(api.http).value("dearkd_inspector_deaths_total") == 1)
    found = scrape(api.http)
    assert found.value("dearkd_synthesised_images_total") == 10 * performed
    assert found.value("dearkd_trained_images_total") == 16 * performed
    shards = {le: found.value("dearkd_shard_seconds_bucket", le=le) for le in ("1.0", "3.0", "43200.0", "+Inf")}
    assert shards == {"1.0": 0, "3.0": performed, "43200.0": performed, "+Inf": performed}
    assert found.value("dearkd_shard_seconds_count") == performed
    assert found.value("dearkd_shard_seconds_sum") == pytest.approx(2.5 * performed)
    assert found.value("dearkd_training_step_seconds_bucket", le="0.025") == performed
    for reason in ("died", "silent"):
        assert found.value("dearkd_leases_lost_total", kind="synthesis", reason=reason) == 1
        assert found.value("dearkd_leases_lost_total", kind="training", reason=reason) == 0
    # Nothing in it grows with jobs, units or workers.
    assert api.store.redis.hlen("dearkd:measures") <= 2 + 2 * 2 + 1 + 2 * 2


def test_workers_alive_are_counted(api: Api, tmp_path: Path) -> None:
    with inspecting(api.settings, tmp_path):
        eventually(lambda: scrape(api.http).value("dearkd_workers", kind="inspect") == 1)
        eventually(lambda: scrape(api.http).value("dearkd_workers", kind="synth") == 1)
        assert scrape(api.http).value("dearkd_workers", kind="trainer") == 0


def test_requests_are_counted_by_template_and_never_by_path(api: Api) -> None:
    def requests(found: Scrape, route: str, method: str = "GET", status: str = "404") -> float:
        return found.value("dearkd_http_requests_total", method=method, route=route, status=status)

    def timed(found: Scrape, route: str) -> float:
        return found.value("dearkd_http_request_seconds_count", method="GET", route=route)

    one, none = f"{JOBS}/{{identifier}}", "none"
    before = scrape(api.http)
    for name in ("syn-a", "syn-b"):
        assert api.http.get(f"{JOBS}/{name}").status_code == 404
        assert api.http.get(f"/nowhere/{name}").status_code == 404
    assert api.http.get(JOBS, headers={"Host": "evil.example"}).status_code == 421
    assert api.http.get("/metrics", headers={"Host": "10.0.0.7:8000"}).status_code == 200
    assert api.http.request("BREW", "/nowhere").status_code in (404, 405)
    after = scrape(api.http)
    assert requests(after, one) - requests(before, one) == 2
    assert timed(after, one) - timed(before, one) == 2
    assert requests(after, none) - requests(before, none) == 2
    assert requests(after, none, status="421") - requests(before, none, status="421") == 1
    samples = after.samples("dearkd_http_requests_total")
    assert not [s for s in samples if "syn-" in s.labels["route"] or "nowhere" in s.labels["route"]]
    assert {s.labels["method"] for s in samples} <= {
        "DELETE",
        "GET",
        "HEAD",
        "OPTIONS",
        "PATCH",
        "POST",
        "PUT",
        "other",
    }


def test_an_error_of_the_server_is_counted_as_one(busy: Scrape) -> None:
    samples = busy.samples("dearkd_http_requests_total")
    assert [
        s for s in samples if s.labels == {"method": "GET", "route": f"{JOBS}/{{identifier}}/events", "status": "500"}
    ]


def test_redis_and_storage_are_timed_by_operation(api: Api) -> None:
    def count(found: Scrape, service: str, operation: str) -> float:
        return found.value(f"dearkd_{service}_operation_seconds_count", operation=operation)

    teacher = put_teacher(api)
    before = scrape(api.http)
    assert api.http.get(f"/v1/teachers/{teacher}").status_code == 200
    assert api.http.get(JOBS).status_code == 200
    after = scrape(api.http)
    assert count(after, "storage", "read") > count(before, "storage", "read")
    assert count(after, "redis", "zrevrangebylex") - count(before, "redis", "zrevrangebylex") == 1
    post_synthesis(api, teacher=teacher)
    # The job as it was accepted, and the line of the audit log.
    assert count(scrape(api.http), "storage", "create") - count(after, "storage", "create") == 2
    assert count(scrape(api.http), "redis", "pipeline") > count(after, "redis", "pipeline")


def test_a_storage_that_is_away_counts_as_its_error_and_none_of_redis(api: Api) -> None:
    def errors(found: Scrape, service: str) -> float:
        return sum(sample.value for sample in found.samples(f"dearkd_{service}_errors_total"))

    teacher = put_teacher(api)
    assert api.http.get(f"/v1/teachers/{teacher}").status_code == 200
    before = scrape(api.http)
    assert api.http.get("/v1/teachers/tch-0f3k9v2c41x-7m2qx8ds").status_code == 404  # absence is no error
    assert errors(scrape(api.http), "storage") == errors(before, "storage")
    root = Path(api.settings.storage_url.removeprefix("file://"))
    root.rename(root.with_name("away"))
    try:
        assert api.http.get(f"/v1/teachers/{teacher}").status_code == 503
        after = scrape(api.http)
    finally:
        root.with_name("away").rename(root)
    assert errors(after, "storage") > errors(before, "storage")
    assert errors(after, "redis") == errors(before, "redis")


def test_without_redis_it_says_what_it_knows_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with embedded_redis(tmp_path / "redis") as url:
        settings = Settings(redis_url=url, storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "cache")
        with serving(settings, tmp_path) as api, ThreadPoolExecutor() as beside:
            assert scrape(api.http).value("dearkd_redis_up") == 1
            assert api.http.get(JOBS).status_code == 200  # by now it knows that there are no keys
            server = connect(settings).info("server")["process_id"]
            os.kill(server, signal.SIGSTOP)  # it takes connections, and answers nothing

            def silent() -> bool:
                asked = beside.submit(scrape, api.http)
                assert api.http.get("/healthz").status_code == 200
                waited = not asked.done()
                return asked.result().value("dearkd_redis_up") == 0 and waited

            eventually(silent)
            os.kill(server, signal.SIGKILL)
            assert api.http.get(JOBS).status_code == 503
            found = scrape(api.http)
            assert found.value("dearkd_redis_up") == 0
            assert not found.samples("dearkd_jobs")
            assert found.value("dearkd_http_requests_total", method="GET", route=JOBS, status="503") == 1
            assert found.value("dearkd_redis_errors_total", operation="zrevrangebylex") == 1
            assert not any(sample.value for sample in found.samples("dearkd_storage_errors_total"))


def test_the_table_of_the_manual_is_the_answer(busy: Scrape) -> None:
    shown = {
        name.strip("`"): (kind, {label.strip(" `") for label in labels.split(",") if label.strip()})
        for name, kind, labels, _, _ in table(read("docs/metrics.md"), "Prometheus")
    }
    found = {}
    for family in busy.families:
        if family.name.startswith("dearkd_"):
            name = family.name + "_total" * (family.type == "counter")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            found[name] = (family.type, labels)
            assert family.documentation.endswith(".")
    assert shown == found


def dashboard() -> list[tuple[str, str]]:
    """The queries of the dashboard, with their legends."""
    panels = json.loads(read("docs/grafana-dashboard.json"))["panels"]
    return [(target["expr"], target["legendFormat"]) for panel in panels for target in panel.get("targets", [])]


def alerts() -> list[str]:
    return [line.partition("expr: ")[2] for line in read("docs/metrics.md").splitlines() if "expr: " in line]


def test_queries_of_dashboard_and_alerts_name_what_there_is(busy: Scrape) -> None:
    queries = [*dashboard(), *((expr, "") for expr in alerts())]
    assert len(queries) > 20
    assert [fault for query, legend in queries for fault in faults(query, legend, busy)] == []
    # And everything that is measured is shown.
    named = {name.removesuffix("_bucket") for query, _ in dashboard() for name, _ in selectors(query)[0]}
    assert named == {row[0].strip("`") for row in table(read("docs/metrics.md"), "Prometheus")}


def test_a_query_that_names_what_there_is_not_is_found(busy: Scrape) -> None:
    wrong = {
        ("max by (kind) (dearkd_job)", ""): "there is no metric dearkd_job",
        ("max by (state) (dearkd_jobs)", ""): "dearkd_jobs has no label state",
        ('rate(dearkd_jobs{kind=~"a|b"}[5m])', ""): "no kind of dearkd_jobs is a|b",
        ('sum(dearkd_jobs{state="queued"}) / 2', ""): "dearkd_jobs has no label state",
        ("max by (kind) (dearkd_jobs)", "{{status}}"): "the legend shows status, by which nothing is grouped",
        ("vector(1)", ""): "'vector(1)' names no metric",
    }
    assert {of: faults(*of, busy) for of in wrong} == {of: [fault] for of, fault in wrong.items()}
