"""Metrics that Redis knows: of jobs, queues and workers, and what workers measured; read whenever Prometheus asks."""

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, cast

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from dearkd.choices import Kind
from dearkd.errors import Unavailable
from dearkd.jobs import measures
from dearkd.jobs.inspections import OPEN
from dearkd.jobs.model import STATUSES
from dearkd.jobs.offers import NEEDS, Needs, Offer, offers
from dearkd.jobs.queue import QUEUES, QueueName, alive
from dearkd.redis_client import Redis, job_index, job_key

log = logging.getLogger(__name__)

KINDS: Final[tuple[Kind, ...]] = ("synthesis", "training")
MOST_COUNTED: Final = 1000
"""The jobs of a kind and state that are asked how many workers they want: a scrape must not grow with the queue."""
KEPT_SECONDS: Final = 1.0
"""The time for which an answer is kept: anybody may ask for it."""


class JobMetrics(Collector):
    """Reads Redis in five round trips and those of `alive` and `offers`; without it has `dearkd_redis_up` 0 alone.

    Args:
        redis: a client of its own, which does not wait long: Prometheus does not either.
        workers: kinds of workers, and the queue on which each listens.
    """

    def __init__(self, redis: Redis, workers: Mapping[str, QueueName]) -> None:
        self._redis = redis
        self._workers = workers
        self._lock = threading.Lock()
        self._found: list[Metric] = []
        self._found_until = 0.0

    def describe(self) -> Iterable[Metric]:
        return []  # or registering would ask Redis, which need not be there yet

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if time.monotonic() >= self._found_until:
                try:
                    self._found = [_up(True), *self._read()]
                except (Unavailable, RedisError) as error:
                    log.warning("metrics of jobs are missing: %s", error)
                    self._found = [_up(False)]
                self._found_until = time.monotonic() + KEPT_SECONDS
            return self._found

    def _read(self) -> list[Metric]:
        pipe = self._redis.pipeline(transaction=False)
        for kind in KINDS:
            for status in STATUSES:
                pipe.zcard(job_index(kind, status))
        for kind in KINDS:
            pipe.zcard(f"dearkd:open:{kind}")
            pipe.zrange(job_index(kind, "queued"), 0, 0)  # ids sort by time
        for name in self._workers.values():
            pipe.llen(f"rq:queue:{name}")
        pipe.zcard("dearkd:leases")
        pipe.scard(OPEN)
        pipe.hgetall(measures.KEY)
        found = iter(pipe.execute())

        jobs = GaugeMetricFamily("dearkd_jobs", "Jobs by kind and state.", labels=("kind", "status"))
        for kind in KINDS:
            for status in STATUSES:
                jobs.add_metric((kind, status), next(found))
        depth = GaugeMetricFamily("dearkd_queue_jobs", "Jobs of which a worker could take a unit.", labels=("kind",))
        oldest: dict[Kind, bytes | None] = {}
        for kind in KINDS:
            depth.add_metric((kind,), next(found))
            oldest[kind] = next(iter(next(found)), None)
        wakeups = GaugeMetricFamily("dearkd_queue_wakeups", "Tasks that wait in rq for a worker.", labels=("kind",))
        for worker in self._workers:
            wakeups.add_metric((worker,), next(found))
        leases = GaugeMetricFamily("dearkd_leases", "Units of work that a worker holds.", value=next(found))
        inspections = GaugeMetricFamily("dearkd_inspections", "Uploads and questions before the inspector.")
        inspections.add_metric((), next(found))
        alive_ones = GaugeMetricFamily("dearkd_workers", "Workers heard of lately.", labels=("kind",))
        for worker, name in self._workers.items():
            alive_ones.add_metric((worker,), alive(self._redis, name))
        sums = {name.decode(): float(value) for name, value in cast("dict[bytes, bytes]", next(found)).items()}
        gauges = [jobs, depth, self._ages(oldest), wakeups, leases, inspections, alive_ones, self._wanted()]
        return [*gauges, *_measured(sums)]

    def _wanted(self) -> Metric:
        """Count the workers that could be at work now: of each job as many as may work side by side and find a unit.

        Units of a later group count as well: they are next, and a worker that is there already is worth more than one
        that is started for them. A job that waits for its next try counts once that is due. Where there are some, all
        jobs that none of them can take count as one: more of the same could not either.
        """
        wanted = GaugeMetricFamily(
            "dearkd_workers_wanted", "Workers that jobs could use now, those at work among them.", labels=("kind",)
        )
        for worker, name in self._workers.items():
            for kind in (kind for kind, served in QUEUES.items() if served == name):
                pipe = self._redis.pipeline(transaction=False)
                for status in ("queued", "running"):
                    pipe.zrange(job_index(kind, status), 0, MOST_COUNTED - 1)
                pipe.zrange("dearkd:retries", 0, -1)
                *indexes, retries = pipe.execute()
                due_later = set(retries)
                keys = [job_key(one.decode()) for found in indexes for one in found if one not in due_later]
                pipe = self._redis.pipeline(transaction=False)
                for key in keys:
                    pipe.hmget(key, "at_once", "parallelism", *NEEDS)  # an older version wrote the second alone
                    pipe.hlen(f"{key}:claims")
                    pipe.zcard(f"{key}:open")
                answers = pipe.execute() if keys else []
                jobs = zip(answers[::3], answers[1::3], answers[2::3], strict=True)
                wanted.add_metric((worker,), _at_work(jobs, offers(self._redis, name)))
        return wanted

    def _ages(self, oldest: Mapping[Kind, bytes | None]) -> Metric:
        ages = GaugeMetricFamily(
            "dearkd_queue_oldest_seconds",
            "Seconds since the oldest job that is queued was accepted; 0 where none is.",
            labels=("kind",),
        )
        for kind, identifier in oldest.items():
            accepted = self._redis.hget(job_key(identifier.decode()), "created_at") if identifier else None
            ages.add_metric((kind,), _age(cast("bytes | None", accepted)))
        return ages


def _at_work(jobs: Iterable[tuple[Sequence[bytes | None], int, int]], there: Sequence[Offer]) -> int:
    """The workers that jobs could use: of each job its bounds and needs, the units held, and those that are open."""
    wanted = for_nobody = 0
    for (at_once, parallelism, *needs), held, still_open in jobs:
        if there and not held and not any(one.fits(Needs.of_record(needs)) for one in there):
            for_nobody = 1
        else:  # at least one, for a job whose units are not recorded yet
            wanted += max(1, min(_most((at_once, parallelism)), held + still_open))
    return wanted + for_nobody


def _most(bounds: Sequence[bytes | None]) -> int:
    """The most workers that may be at a job at once, by the first bound that its record has."""
    return int(next((bound for bound in bounds if bound is not None), b"1"))


def _up(reached: bool) -> Metric:
    return GaugeMetricFamily("dearkd_redis_up", "1 if Redis could be read for this answer, else 0.", value=int(reached))


def _age(accepted: bytes | None) -> float:
    """Seconds since a job was accepted; NaN where its record is damaged, which hides no other metric."""
    if accepted is None:
        return 0.0
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(accepted.decode())).total_seconds())
    except (TypeError, ValueError):
        return float("nan")


def _measured(sums: Mapping[str, float]) -> Iterable[Metric]:
    """The sums of workers, as `measures` keeps them; what nobody has measured yet is 0."""
    for counter in measures.COUNTERS:
        family = CounterMetricFamily(counter.name, counter.help, labels=tuple(counter.labels))
        for values in counter.series:
            family.add_metric(values, sums.get(counter.field(*values), 0.0))
        yield family
    for histogram in measures.HISTOGRAMS:
        buckets, count = [], 0.0
        for place, bound in enumerate((*histogram.bounds, float("inf"))):
            count += sums.get(histogram.bucket(place), 0.0)
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), count))
        yield HistogramMetricFamily(histogram.name, histogram.help, buckets, sums.get(histogram.total, 0.0))
