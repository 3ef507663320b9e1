"""What workers measure, on its way to Redis."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dearkd.errors import Unavailable
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.measures import IMAGES, KEY, LEASES_LOST, SHARD_SECONDS
from dearkd.jobs.store import JobStore
from dearkd.local.embedded_redis import free_port
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd.work.attempt import Attempt
from tests.support.ledger_steps import claim, expire_all, mark, synthesis


def kept(ledger: Ledger) -> dict[str, float]:
    return {name.decode(): float(value) for name, value in ledger.redis.hgetall(KEY).items()}


def test_a_report_takes_along_what_was_measured_and_only_once(ledger: Ledger, store: JobStore) -> None:
    synthesis(store)
    unit = claim(ledger)
    ledger.measures.count(IMAGES, by=3)
    ledger.measures.observe(SHARD_SECONDS, 3.0)  # a bound belongs to its bucket
    ledger.measures.observe(SHARD_SECONDS, 1e6)
    for _ in range(2):
        ledger.report(unit, done=3, per_second=None, metrics={})
    assert kept(ledger) == {
        "dearkd_synthesised_images_total": 3,
        "dearkd_shard_seconds|3": 1,
        "dearkd_shard_seconds|inf": 1,
        "dearkd_shard_seconds|sum": 1e6 + 3,
    }


def test_an_outage_loses_nothing(ledger: Ledger, settings: Settings) -> None:
    ledger.measures.count(IMAGES, by=3)
    with connect(settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0"})) as away:
        pipe = away.pipeline()
        with pytest.raises(Unavailable), ledger.measures.told(pipe):
            pipe.execute()
    ledger.measures.count(IMAGES, by=2)
    ledger.tell_measures()
    assert kept(ledger) == {"dearkd_synthesised_images_total": 5}
    assert not ledger.measures


def test_threads_may_count_while_another_tells(ledger: Ledger) -> None:
    def count() -> None:
        for _ in range(2000):
            ledger.measures.count(IMAGES)

    over = threading.Event()
    with ThreadPoolExecutor() as pool:
        counting = [pool.submit(count) for _ in range(2)]

        def tell() -> None:
            while not over.is_set():
                ledger.tell_measures()

        telling = pool.submit(tell)
        for each in counting:
            each.result()
        over.set()
        telling.result()
    ledger.tell_measures()
    assert kept(ledger) == {"dearkd_synthesised_images_total": 4000}


@pytest.mark.parametrize("reported", [False, True])
def test_an_attempt_tells_what_is_left_before_it_ends(
    ledger: Ledger, store: JobStore, settings: Settings, reported: bool
) -> None:
    job = synthesis(store)
    unit = claim(ledger)
    with Attempt(unit, job, ledger, settings, threading.Event()) as attempt:
        if reported:
            attempt.progress(1, None, {})
        attempt.measures.count(IMAGES)
        attempt.stop_reporting()
        assert kept(ledger) == {"dearkd_synthesised_images_total": 1}
        mark(ledger, unit)


def test_a_lease_is_lost_once_and_for_a_reason(ledger: Ledger, store: JobStore) -> None:
    synthesis(store)
    unit = claim(ledger)
    ledger.release(unit)  # handed back: that is no loss
    assert kept(ledger) == {}
    claim(ledger)
    expire_all(ledger)
    for _ in range(2):
        ledger.reap(max_deaths=3)
    assert kept(ledger) == {LEASES_LOST.field("synthesis", "silent"): 1}
