"""Spans of a worker's attempts, on a real Redis and storage, before a collector that reads what it is sent."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from dearkd import tracing
from dearkd.errors import Canceled, CorruptData
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.store import JobStore
from dearkd.local.embedded_redis import free_port
from dearkd.settings import Settings
from dearkd.work.attempt import Attempt, Died, HandBack
from dearkd.work.worker import drain
from tests.support.ledger_steps import mark, synthesis
from tests.support.otlp_receiver import Collector, collecting
from tests.support.services import environment, eventually


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker's loop puts its own handler in place, and what it gave up sending goes on in its thread for a while."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "last-spans"], seconds=60)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


def end(attempt: Attempt) -> None:
    """Mark a unit, as the services do once what it makes is stored."""
    attempt.stop_reporting()
    if attempt.unit == "finish":
        attempt.ledger.complete(attempt.claim, {"dataset": "ds"})
    else:
        mark(attempt.ledger, attempt.claim)


def test_every_attempt_is_below_the_span_that_its_job_was_posted_in(
    ledger: Ledger, store: JobStore, settings: Settings, collector: Collector
) -> None:
    with tracing.exporting("poster"), tracing.span("post", role="server"):
        job = synthesis(store, shards=2)
    tried: list[str] = []

    def perform(attempt: Attempt) -> None:
        tried.append(attempt.unit)
        with tracing.span("part", {"number": len(tried)}):
            if len(tried) == 1:
                raise CorruptData("a shard is cut short")
        end(attempt)

    drain("synthesis", perform, settings)
    assert store.get(job.id).status == "failed"
    store.retry(job.id)
    drain("synthesis", perform, settings)
    (post,) = collector.named("post")
    attempts = collector.below(post)
    assert [(span.name, span.kind, span.service) for span in attempts[:3]] == [
        ("synthesis shard", "consumer", "dearkd-worker-synth")
    ] * 3
    assert attempts[3].name == "synthesis finish"
    assert {span.trace for span in collector.spans} == {post.trace}
    first, second = attempts[:2]
    assert (
        first.attributes.items()
        >= {
            "dearkd.job.id": job.id,
            "dearkd.job.kind": "synthesis",
            "dearkd.job.attempt": 1,
            "dearkd.unit": "0",
            "dearkd.shard": 0,
            "dearkd.unit.done": False,
            "error.type": "corrupt_data",
        }.items()
    )
    assert first.error == "a shard is cut short"
    assert (second.error, second.attributes["dearkd.job.attempt"], second.attributes["dearkd.unit.done"]) == (
        None,
        2,
        True,
    )
    assert int(second.attributes["dearkd.claim"]) > int(first.attributes["dearkd.claim"])
    (part,) = collector.below(first)
    assert (part.name, part.attributes, part.error, part.events) == (
        "part",
        {"number": 1, "error.type": "corrupt_data"},
        "a shard is cut short",
        ["exception"],
    )
    assert first.began <= part.began <= part.ended <= first.ended


def test_a_job_that_redis_lost_goes_on_in_its_trace(ledger: Ledger, store: JobStore, collector: Collector) -> None:
    with tracing.exporting("poster"), tracing.span("post"):
        job = synthesis(store)
        given = tracing.traceparent()
    ledger.redis.delete(f"dearkd:job:{job.id}")
    store.retry(job.id)
    (post,) = collector.named("post")
    assert given is not None
    assert given.startswith(f"00-{post.trace}-{post.id}-")
    assert store.get(job.id).traceparent == given


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (HandBack(), None),
        (Canceled("it was canceled"), None),
        (Died("lost a process"), "worker_died"),
        (ValueError("a bug"), "internal_error"),
    ],
)
def test_only_a_fault_is_an_error(
    ledger: Ledger, store: JobStore, settings: Settings, collector: Collector, raised: Exception, kind: str | None
) -> None:
    synthesis(store, shards=1)

    def perform(attempt: Attempt) -> None:
        attempt._handing_back.set()  # one attempt is enough
        with tracing.span("part"):
            raise raised

    drain("synthesis", perform, settings)
    (attempt,), (part,) = collector.named("synthesis shard"), collector.named("part")
    assert attempt.parent == ""  # nothing that is traced posted the job
    assert part.parent == attempt.id
    assert (attempt.attributes.get("error.type"), attempt.error is None) == (kind, kind is None)
    assert (part.error is None, part.events) == (kind is None, [] if kind is None else ["exception"])
    assert attempt.attributes["dearkd.unit.done"] is False


def test_lines_of_the_log_bear_the_ids_of_their_span(
    ledger: Ledger, store: JobStore, settings: Settings, collector: Collector
) -> None:
    synthesis(store, shards=1)
    found: list[dict[str, str]] = []

    def perform(attempt: Attempt) -> None:
        found.append(tracing.ids())
        beside: list[dict[str, str]] = []
        attempt._beat = lambda: beside.append(tracing.ids())  # type: ignore[method-assign]  # in the lease's thread
        while not beside:
            time.sleep(0.01)
        found.append(beside[0])
        with tracing.span("part"):
            found.append(tracing.ids())
        attempt._handing_back.set()
        attempt.check()

    drain("synthesis", perform, settings.model_copy(update={"heartbeat_seconds": 0.05}))
    (attempt,), (part,) = collector.named("synthesis shard"), collector.named("part")
    of_attempt = {"trace_id": attempt.trace, "span_id": attempt.id}
    assert found == [of_attempt, of_attempt, {"trace_id": attempt.trace, "span_id": part.id}]
    assert tracing.ids() == {}


@pytest.mark.parametrize("silent", [False, True])
def test_a_collector_that_is_away_fails_nothing_and_holds_nobody_up(
    ledger: Ledger,
    store: JobStore,
    settings: Settings,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    silent: bool,
) -> None:
    collector.silent = silent
    if not silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    for name in ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"):
        monkeypatch.setenv(name, "10")
    job = synthesis(store, shards=6)
    took: list[float] = []
    last: list[float] = []

    def perform(attempt: Attempt) -> None:
        began = time.monotonic()
        for _ in range(20):  # more than it keeps
            with tracing.span("part"):
                pass
        end(attempt)
        took.append(time.monotonic() - began)
        time.sleep(0.05)
        last.append(time.monotonic())

    assert drain("synthesis", perform, settings) == 7
    # Who refuses connections is known to be away; for who takes them and says nothing it waits.
    assert time.monotonic() - last[-1] < (tracing.FLUSH_SECONDS + 2 if silent else tracing.FLUSH_SECONDS - 0.5)
    assert store.get(job.id).status == "succeeded"
    assert max(took) < 3
    assert collector.spans == []


IMPORTS = """
import dearkd.work.worker, dearkd.work.listener
"""
ABSENT = """
import importlib.metadata as metadata, logging, sys
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
found = metadata.MetadataPathFinder.find_distributions
there = lambda *given: (one for one in found(*given) if not one.metadata["Name"].startswith("opentelemetry"))
metadata.MetadataPathFinder.find_distributions = staticmethod(there)
"""
USES = """
from dearkd import tracing
tracing.warn_of_missing()
tracing.preload()
for _ in range(3):
    with tracing.exporting("a"), tracing.span("b", {"c": 1}, role="server", parent={"traceparent": "x"}):
        tracing.annotate({"d": 2}, name="e")
        tracing.fail("f")
        tracing.span_since(0, "g", {})
        assert (tracing.traceparent(), tracing.ids()) == (None, {})
"""
QUIET = """
import sys
# redis-py imports OpenTelemetry's metrics by itself, where they are there.
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))]
"""


@pytest.mark.parametrize(
    ("program", "asked", "lines"),
    [
        (IMPORTS + USES + QUIET, False, 0),
        (ABSENT + IMPORTS + USES + QUIET, False, 0),
        (ABSENT + IMPORTS + USES + QUIET, True, 1),
    ],
)
def test_without_the_package_nothing_breaks_and_one_line_says_so(
    settings: Settings, program: str, asked: bool, lines: int
) -> None:
    more = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"} if asked else {}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=environment(settings, **more), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    told = [line for line in ended.stderr.splitlines() if line]
    assert len(told) == lines
    assert all("WARNING" in line and "pip install 'dearkd[otel]'" in line for line in told)


def test_a_variable_that_the_sdk_refuses_is_a_warning(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with tracing.exporting("a"), tracing.span("b"):
        assert tracing.ids() == {}
    assert [record.message for record in caplog.records if record.name == "dearkd.tracing"] == [
        "no traces are sent: ValueError: max_queue_size must be a positive integer."
    ]
    assert collector.requests == []
