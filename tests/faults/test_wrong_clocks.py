"""Real workers on hosts whose clocks are an hour off, one behind and one ahead, at one Redis."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.offers import offers
from dearkd.jobs.queue import alive, queue
from dearkd.redis_client import milliseconds
from dearkd.settings import Settings
from tests.faults.test_listener import horses, worker
from tests.services.core.conftest import ledger, redis_url, settings
from tests.support.ledger_steps import synthesis
from tests.support.services import eventually

__all__ = ["ledger", "redis_url", "settings"]

pytestmark = [pytest.mark.faults, pytest.mark.services, pytest.mark.timeout(300)]

LEASE = 4.0
SHIFTED = """
import time
plain, plain_ns = time.time, time.time_ns
time.time = lambda: plain() + {seconds}
time.time_ns = lambda: plain_ns() + {seconds} * 10**9
import datetime, rq.worker.base, rq.utils
def now():
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds={seconds})
rq.utils.now = rq.worker.base.now = now
"""
"""Imported by each Python at its start: the clock of its host, as what dearkd and rq ask for it sees it."""


def test_workers_whose_clocks_are_an_hour_off_work_and_their_deaths_are_noticed(
    ledger: Ledger, settings: Settings, tmp_path: Path
) -> None:
    """Each worker may be the reaper; and what rq takes for abandoned by the clock of another costs nothing."""
    settings = settings.model_copy(update={"lease_seconds": LEASE, "heartbeat_seconds": 0.5})
    storage = ledger.store.storage
    storage.put("hold", b"x")
    jobs = [synthesis(ledger.store, shards=1) for _ in range(2)]

    def told(text: str) -> int:
        return sum(ledger.log.read(job.id).count(text) for job in jobs)

    with ExitStack() as fleet:
        supervisors = []
        for name, seconds in (("behind", -3600), ("ahead", 3600)):
            (tmp_path / name / "code").mkdir(parents=True)
            (tmp_path / name / "code" / "sitecustomize.py").write_text(SHIFTED.format(seconds=seconds))
            supervisors.append(fleet.enter_context(worker("synth", settings, tmp_path / name)))
        eventually(lambda: told(" begins on ") == 2)
        time.sleep(2 * LEASE)  # before that no reaper takes the silent for dead
        wakes = queue(ledger.redis, "synth").started_job_registry
        wakes.cleanup(timestamp=time.time() + 7200)  # as rq does on the host that is ahead
        time.sleep(LEASE)
        ledger.reap(max_deaths=99)  # as a host does whose clock is right
        assert told("lost its worker") == 0
        assert alive(ledger.redis, "synth") == 2
        assert len(offers(ledger.redis, "synth")) == 1, "alike workers, one offer"
        assert all(0 < due - milliseconds(ledger.redis) <= LEASE * 1000 for _, due in _leases(ledger))
        for supervisor in supervisors:
            (horse,) = horses(supervisor)
            horse.suspend()
        eventually(lambda: told("lost its worker") == 2, seconds=60)
        for supervisor in supervisors:
            for horse in horses(supervisor):
                horse.resume()
        storage.delete("hold")
        eventually(lambda: all(ledger.store.get(job.id).terminal for job in jobs))
        again = synthesis(ledger.store, shards=1)
        eventually(lambda: ledger.store.get(again.id).terminal)
        for job in (*jobs, again):
            error = ledger.store.get(job.id).error
            assert error is not None
            assert error.code == "done"


def _leases(ledger: Ledger) -> list[tuple[bytes, float]]:
    found = cast("list[tuple[bytes, float]]", ledger.redis.zrange("dearkd:leases", 0, -1, withscores=True))
    assert len(found) == 2
    return found
