"""Workers that wait in place of computing, as threads of one process: see `fleet.py`."""

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rq.serializers import JSONSerializer

from dearkd.data.shard_files import Shard, shard_name
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import dataset_of
from dearkd.jobs.queue import QueueName, queue
from dearkd.jobs.reaper import Reaper
from dearkd.jobs.store import JobStore
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd.storage.catalog import describe_file
from dearkd.storage.objects import Storage
from dearkd.work import worker as worker_loop
from dearkd.work.attempt import Attempt
from dearkd.work.listener import ListeningWorker
from dearkd.work.worker import LISTENS

STEP_SECONDS = 1.0
METRICS = {"shard": 1, "batch": 1, "iteration": 100, "loss": 1.25, "cross_entropy": 0.5, "statistics": 0.5}

Timings = dict[str, list[float]]


@contextmanager
def timed(timings: Timings, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[name].append(time.perf_counter() - began)


def listen_to(timings: Timings) -> None:
    """Let every ledger of this process tell how long its calls take, those that find nothing to claim too."""
    for name in ("claim", "beat", "report", "done", "release"):
        method = getattr(Ledger, name)

        def listened(ledger: Ledger, *args: Any, _name: str = name, _method: Any = method, **more: Any) -> Any:
            with timed(timings, _name):
                return _method(ledger, *args, **more)

        setattr(Ledger, name, listened)


class SimulatedMaker:
    """Does what the service does to a unit, but for the images."""

    def __init__(self, seconds: float, timings: Timings) -> None:
        self._seconds = random.uniform(0, seconds)  # the first one: workers did not all begin at the same moment
        self._usual = seconds
        self._timings = timings

    def perform(self, attempt: Attempt) -> None:
        """Wait for as long as a shard takes, then publish one, as `dearkd_synth.service.job` does."""
        storage, prefix = attempt.storage, f"datasets/{dataset_of(attempt.job.id)}"
        if attempt.unit == "finish":
            attempt.publish(lambda: attempt.ledger.complete(attempt.claim, {"dataset": dataset_of(attempt.job.id)}))
            return
        name = shard_name(int(attempt.unit))
        storage.exists(f"{prefix}/{name}")
        began = time.monotonic()
        while (left := self._seconds - (time.monotonic() - began)) > 0:
            attempt.check()
            attempt.progress(int(20 * (1 - left / self._seconds)), 0.1, METRICS)
            time.sleep(min(left, STEP_SECONDS))
        self._seconds = self._usual
        with attempt.cache.scratch("shard") as folder:
            path = folder / name
            path.write_bytes(attempt.claim.job.encode() + attempt.unit.encode())
            made = describe_file(path)
            shard = Shard(**made.model_dump(), samples=20, classes={0: 20})

            def publish() -> None:
                note = f"jobs/{attempt.job.id}/shards/{name}-{shard.sha256[:16]}"
                storage.put(f"{note}.png", b"strip")
                storage.put(f"{note}.json", shard.model_dump_json().encode())
                storage.create_or_adopt(f"{prefix}/{name}", path, shard, lambda: shard)

            with timed(self._timings, "publish"):
                attempt.publish(publish)
        attempt.stop_reporting()
        attempt.publish(lambda: attempt.ledger.done(attempt.claim, shard))


def share_storage(settings: Settings) -> None:
    """Let the workers of this process share a client of the bucket; of Redis each has its own, as real ones have."""
    storage = Storage.open(settings)
    worker_loop.open_ledger = lambda settings: Ledger(JobStore(connect(settings), storage))


def work(settings: Settings, count: int, seconds: float, begin: Any, stop: Any, answer: Any) -> None:
    """A process of `count` workers, until `stop` is set; answers with what their calls took from `begin` on."""
    timings: Timings = defaultdict(list)
    listen_to(timings)
    share_storage(settings)
    threading.stack_size(256 * 1024)

    def worker() -> None:
        maker = SimulatedMaker(seconds, timings)
        while True:
            worker_loop.drain("synthesis", maker.perform, settings)
            time.sleep(1)

    def supervise() -> None:
        # One thread takes the steps of all supervisors: each asks whether it is to reap every two seconds.
        reapers = [Reaper(worker_loop.open_ledger(settings), settings) for _ in range(count)]
        while True:
            for reaper in reapers:
                reaper.step()
            time.sleep(1)

    for task in [worker] * count + [supervise]:
        threading.Thread(target=task, daemon=True).start()
    begin.wait()
    for taken in timings.values():
        taken.clear()
    stop.wait()
    answer.put({name: list(taken) for name, taken in timings.items()})
    answer.close()
    answer.join_thread()
    os._exit(0)  # at one stroke, with what its threads hold


def listen(settings: Settings, count: int, stop: Any) -> None:
    """A process with the two rq workers of each of `count` workers, which find nothing to do, until `stop` is set."""
    threading.stack_size(256 * 1024)

    def listener(name: QueueName) -> None:
        redis = connect(settings)
        worker = ListeningWorker([queue(redis, name)], connection=redis, serializer=JSONSerializer, worker_ttl=30)
        worker.supervisor = os.getppid()
        worker.register_birth()  # type: ignore[no-untyped-call]  # rq has no annotation there
        worker.dequeue_job_and_maintain_ttl(worker.dequeue_timeout)

    for name in count * LISTENS["synth"]:
        threading.Thread(target=listener, args=(name,), daemon=True).start()
    stop.wait()
    os._exit(0)


def rush(settings: Settings, count: int, seconds: float, begin: Any, answer: Any) -> None:
    """A process of `count` workers, each of which claims and gives back for so many seconds."""
    timings: Timings = defaultdict(list)
    listen_to(timings)
    share_storage(settings)
    threading.stack_size(256 * 1024)
    answer.put({})  # there
    begin.wait()
    until = time.monotonic() + seconds

    def worker() -> None:
        ledger = worker_loop.open_ledger(settings)
        while time.monotonic() < until:
            claim = ledger.claim("synthesis", settings.lease_seconds)
            if claim is not None:
                ledger.release(claim)

    threads = [threading.Thread(target=worker) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answer.put(dict(timings))
