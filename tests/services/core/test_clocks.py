"""Hosts whose clocks are wrong: nothing that one writes is judged by another's clock, but by Redis' own."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, cast

import pytest
from rq.serializers import JSONSerializer

import dearkd
from dearkd.jobs import ledger as ledger_module
from dearkd.jobs import model
from dearkd.jobs.idempotency import Answers
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import JobError
from dearkd.jobs.offers import Offer, advertise, offers
from dearkd.jobs.queue import SILENCE_SECONDS, alive, queue
from dearkd.jobs.quotas import KeyQuotas
from dearkd.redis_client import milliseconds
from dearkd.specs.requests import Quotas
from dearkd.work.listener import ListeningWorker
from tests.support.ledger_steps import claim, mark, synthesis

SHIFTS = (-3600.0, -60.0, 60.0, 3600.0)
OURS = Offer(device="cuda", name="ours", memory_bytes=2**34, compiler=True)
THEIRS = Offer(device="cpu", name="theirs", memory_bytes=2**33, compiler=False)
SECONDS = 0.4
"""A lease that runs out within a test."""

Host = Callable[[float], Any]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """What is done within `host(seconds)` is done on a host whose clock is so far ahead."""
    plain = {name: getattr(time, name) for name in ("time", "time_ns")}

    @contextmanager
    def on(seconds: float) -> Iterator[None]:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Self:
                return super().now(tz) + timedelta(seconds=seconds)

        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: plain["time"]() + seconds)
            patch.setattr(time, "time_ns", lambda: plain["time_ns"]() + int(seconds * 1e9))
            for module in (model, ledger_module):
                patch.setattr(module, "datetime", Clock)
            patch.setattr("rq.worker.base.now", lambda: Clock.now(UTC))
            assert abs((model.now() - datetime.now(UTC)).total_seconds() - seconds) < 30
            yield

    return on


def seconds_left(ledger: Ledger, key: str) -> list[float]:
    """The seconds, by Redis' clock, until what a sorted set holds is due."""
    now = milliseconds(ledger.redis)
    found = cast("list[tuple[bytes, float]]", ledger.redis.zrange(key, 0, -1, withscores=True))
    return [(due - now) / 1000 for _, due in found]


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_worker_with_a_wrong_clock_keeps_its_unit_and_its_death_is_noticed_in_time(
    ledger: Ledger, host: Host, shift: float
) -> None:
    job = synthesis(ledger.store, 1)
    with host(shift):
        held = ledger.claim("synthesis", 15.0)
        assert held is not None
    assert ledger.reap(max_deaths=1) == [], "a live one"
    with host(shift):
        assert ledger.beat(held, 15.0) == "running"
    assert 10 < seconds_left(ledger, "dearkd:leases")[0] <= 15
    assert ledger.reap(max_deaths=1) == []
    with host(shift):
        ledger.beat(held, SECONDS)
    time.sleep(SECONDS + 0.1)
    assert [status for _, status in ledger.reap(max_deaths=3)] == ["queued"], "a dead one"
    with host(shift):
        again = claim(ledger)
        mark(ledger, again)
    assert ledger.store.get(job.id).status == "running"


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_reaper_with_a_wrong_clock_takes_what_is_over_and_nothing_else(
    ledger: Ledger, host: Host, shift: float
) -> None:
    for _ in range(2):
        synthesis(ledger.store, 1)
    living, dying = ledger.claim("synthesis", 15.0), ledger.claim("synthesis", SECONDS)
    assert living is not None
    assert dying is not None
    time.sleep(SECONDS + 0.1)
    with host(shift):
        assert [(taken.job, status) for taken, status in ledger.reap(max_deaths=3)] == [(dying.job, "queued")]
    assert ledger.beat(living, 15.0) == "running"


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_lease_that_an_earlier_version_wrote_reads_as_before(ledger: Ledger, shift: float) -> None:
    """It is of the same unit: milliseconds since the epoch, there by its own clock until its next beat."""
    synthesis(ledger.store, 1)
    held = claim(ledger)
    theirs = {f"{held.job}#{held.unit}": int((time.time() + shift + 15) * 1000)}
    ledger.redis.zadd("dearkd:leases", theirs)
    assert len(ledger.reap(max_deaths=3)) == (shift < -15)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_next_try_begins_in_time_whoever_reckons_and_whoever_begins_it(
    ledger: Ledger, host: Host, shift: float
) -> None:
    job = synthesis(ledger.store, 1, max_retries=1)
    held = claim(ledger)
    with host(shift):
        ledger.fail(job.id, JobError(code="disk_full", message="full", retryable=True), held)
        ledger.reap(max_deaths=3)
    (left,) = seconds_left(ledger, "dearkd:retries")
    assert 5 < left <= 10
    told = ledger.store.get(job.id).retry_at
    assert told is not None
    assert 5 < told.timestamp() - milliseconds(ledger.redis) / 1000 <= 10
    ledger.redis.zincrby("dearkd:retries", -(left + 1) * 1000, job.id)
    with host(shift):
        ledger.reap(max_deaths=3)
    assert claim(ledger).job == job.id


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_host_with_a_wrong_clock_has_an_offer_and_leaves_those_of_others(
    ledger: Ledger, host: Host, shift: float
) -> None:
    advertise(ledger.redis, "train", OURS)
    with host(shift):
        advertise(ledger.redis, "train", THEIRS)
        assert {one.name for one in offers(ledger.redis, "train")} == {"ours", "theirs"}
    assert {one.name for one in offers(ledger.redis, "train")} == {"ours", "theirs"}
    for member in ledger.redis.zrange("dearkd:offers:train", 0, -1):
        ledger.redis.zincrby("dearkd:offers:train", -46, member)
    with host(shift):
        assert offers(ledger.redis, "train") == [], "nobody repeats them"


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_worker_with_a_wrong_clock_counts_for_as_long_as_it_was_heard_of(
    ledger: Ledger, host: Host, shift: float
) -> None:
    redis = ledger.redis
    with host(shift):
        worker = ListeningWorker([queue(redis, "inspect")], connection=redis, serializer=JSONSerializer)
        worker.supervisor = os.getppid()
        worker.register_birth()
        worker.heartbeat()
    assert alive(redis, "inspect") == 1
    assert 0 < redis.ttl(worker.key) <= SILENCE_SECONDS
    with host(shift):
        pipe = redis.pipeline()
        worker.heartbeat(61, pipe)  # as rq does while a task runs
        pipe.execute()
    assert 0 < redis.ttl(worker.key) <= SILENCE_SECONDS
    redis.pexpire(worker.key, 1)
    time.sleep(0.01)
    assert alive(redis, "inspect") == 0, "silent for so long"
    redis.hset(worker.key, "state", "busy")  # as rq does: without a birth, and for ever
    assert alive(redis, "inspect") == 0
    worker.next_sign = 0.0
    worker.heartbeat()
    assert alive(redis, "inspect") == 1
    assert redis.hget(worker.key, "pid") == str(worker.pid).encode()


@pytest.mark.parametrize("shift", SHIFTS)
def test_apis_whose_clocks_differ_make_an_answer_once_and_count_as_one(
    ledger: Ledger, host: Host, shift: float
) -> None:
    answers, quotas = Answers(ledger.redis), KeyQuotas(ledger.redis)
    assert answers.claim("o", "key", "print", "first", seconds=20).state == "new"
    with host(shift):
        assert answers.claim("o", "key", "print", "second", seconds=20).state == "making"
        assert answers.claim("o", "mine", "print", "third", seconds=SECONDS).state == "new"
    time.sleep(SECONDS + 0.1)
    assert answers.claim("o", "mine", "print", "fourth", seconds=20).state == "again"
    found = []
    for _ in range(4):  # four in a minute, whenever that began
        with host(shift):
            found.append(quotas.take_request("o", 2))
        found.append(quotas.take_request("o", 2))
    assert len(ledger.redis.keys("dearkd:requests:o:*")) <= 2
    assert any(wait is not None and 0 < wait <= 60 for wait in found)
    bounds = Quotas(images_per_day=10)
    with host(24 * shift), quotas.charged("o", bounds, images=4):
        pass
    with quotas.charged("o", bounds, images=4):
        pass
    assert quotas.used("o") == {"images": 8, "bytes": 0}


def test_no_step_of_a_job_is_told_the_time_by_who_asks_for_it() -> None:
    """What is only shown (`at`) may be: no script compares it, nor keeps it as a score."""
    folder = Path(dearkd.__file__).parent / "jobs"
    for script in (folder / "lua").glob("*.lua"):
        assert not re.search(r"args(\.now|\[?.?until)\b", script.read_text()), script.name
    for code in (*folder.glob("*.py"), *(folder.parent / "work").glob("*.py")):
        assert not re.search(r"\btime\.time(_ns)?\(", code.read_text()), code.name
