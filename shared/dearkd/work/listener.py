"""The rq worker: a process that waits on one queue and forks a work-horse for each wake-up.

Threads do not survive a fork, and what waits for one in the child waits for ever. So this process has one thread, and
touches nothing that would start another: it speaks to Redis alone. Storage (obstore has threads) and CUDA are for
the work-horse and the supervisor. import-linter keeps them out of here; a test counts the threads.

Importing torch and timm takes eight seconds of a core, but starts no thread and no CUDA. So this process does it for
all of its horses, before the first that has something to do. What is broken may end who imports it: then the next rq
worker leaves that to its horses, whose deaths fail a job with the cause, until one of them has lived through it.
"""

import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol, cast

from redis.exceptions import RedisError
from rq import Worker, worker_registration
from rq.exceptions import AbandonedJobError
from rq.serializers import JSONSerializer

from dearkd import tracing
from dearkd.errors import Unavailable
from dearkd.imports import import_large
from dearkd.jobs.deaths import (
    InspectorDeath,
    end_this_process,
    exit_clause,
    holder,
    is_near_limit,
    note_inspector_death,
    peak_clause,
)
from dearkd.jobs.leases import Leases
from dearkd.jobs.offers import Offer, advertise
from dearkd.jobs.queue import CODE, QUEUES, SILENCE_SECONDS, QueueName, queue, step_key
from dearkd.log_lines import log_to_stderr
from dearkd.redis_client import Redis, connect
from dearkd.settings import Settings
from dearkd.work.own_offer import own_offer

log = logging.getLogger(__name__)

BROKEN_SECONDS = 1.0
WATCH_SECONDS = 1
"""Time between two looks after the supervisor, and after an inspection's time."""
SIGN_SECONDS = 10.0
"""Time between two signs of life to Redis, of which each is several commands: rq would give one with each look."""


class Doubt(Protocol):
    """Memory that a supervisor, the rq workers of a queue and their horses share: true from the moment at which one of
    them begins to import its code until one has lived through that."""

    value: bool


_doubt: Doubt = cast(Doubt, SimpleNamespace(value=False))


class ListeningWorker(Worker):
    """rq's worker in one thread. An outage of Redis does not end it while its horse works: the horse would end too."""

    max_connection_wait_time = 5.0
    """After a long outage rq would let up to a minute pass before it looks again."""

    supervisor = 0
    """The process with which this one ends."""
    step_seconds: float | None = None
    """The time that a task may take for each of its steps; None: as long as its lease lives."""
    overdue = False
    """True if the horse was killed for taking longer."""
    offer: Offer | None = None
    """The device that its jobs run on; None where no job of its queue needs one."""
    next_sign = 0.0
    """The time, by the monotonic clock, at which the next sign of life is due."""

    @property
    def dequeue_timeout(self) -> int:
        return WATCH_SECONDS

    def subscribe(self) -> None:
        """Listen to no commands of rq's: that would take a thread."""

    def fork_work_horse(self, job: Any, queue: Any) -> None:
        if not _doubt.value and CODE[queue.name] not in sys.modules:
            # Who is asked to end meanwhile does so at once: its horse would be killed as soon as it began.
            told = signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with suppress(Exception):  # the horse will meet the same, and say it
                if is_there_work(cast(Redis, self.connection), queue.name):
                    import_code(queue.name)
            signal.signal(signal.SIGTERM, told)
        super().fork_work_horse(job, queue)

    def main_work_horse(self, job: Any, queue: Any) -> None:
        # From the fork on: a worker that is killed while its horse still imports leaves an orphan that nobody ends.
        threading.Thread(target=_end_with, args=(self.pid,), daemon=True).start()
        super().main_work_horse(job, queue)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        if not self.is_horse:
            require_parent(self.supervisor)
        if timeout is None and pipeline is None:
            if time.monotonic() < self.next_sign:
                return
            self.next_sign = time.monotonic() + SIGN_SECONDS
        super().heartbeat(SILENCE_SECONDS, pipeline)
        if pipeline is None and not self._is_known():
            with self.connection.pipeline() as again:
                again.hset(self.key, mapping=self.serialize())
                worker_registration.register(self, again)
                again.expire(self.key, SILENCE_SECONDS)
                again.execute()
        if pipeline is None and self.offer is not None:
            self._advertise(self.offer)

    def _is_known(self) -> bool:
        """Tell whether Redis has the whole record: not if it was emptied, or this worker was held up for long."""
        with self.connection.pipeline(transaction=False) as pipe:
            pipe.hexists(self.key, "birth")
            pipe.sismember(self.redis_workers_keys, self.key)
            return all(pipe.execute())

    def monitor_work_horse(self, job: Any, queue: Any, execution: Any) -> None:
        self.overdue = False
        self._step: bytes | None = None
        self._step_since = time.monotonic()
        super().monitor_work_horse(job, queue, execution)

    def maintain_heartbeats(self, job: Any, execution: Any) -> None:
        require_parent(self.supervisor)
        try:
            if time.monotonic() >= self.next_sign:
                super().maintain_heartbeats(job, execution)
                self.connection.expire(self.key, SILENCE_SECONDS)  # rq has its own where the record had run out
                if self.offer is not None:
                    self._advertise(self.offer)
                self.next_sign = time.monotonic() + SIGN_SECONDS
            if self.step_seconds is not None:
                self._end_overdue(str(job.args[0]), self.step_seconds)
        except RedisError as error:
            log.warning("no sign of life could be given: %s", error)

    def _advertise(self, offer: Offer) -> None:
        advertise(cast(Redis, self.connection), self.queues[0].name, offer)

    def _end_overdue(self, ticket: str, step_seconds: float) -> None:
        """Kill a horse that is still at the same step after so long; from outside, since nothing in it need run."""
        step = cast("bytes | None", self.connection.get(step_key(ticket)))
        if step != self._step:
            self._step, self._step_since = step, time.monotonic()
        if not self.overdue and time.monotonic() - self._step_since > step_seconds:
            self.overdue = True
            self.kill_horse()


def listen(name: QueueName, supervisor: int, doubt: Doubt) -> None:
    """Work on one queue until SIGTERM, or until the supervisor is gone."""
    global _doubt
    _doubt = doubt
    settings = Settings()
    log_to_stderr(settings)
    # A Ctrl-C goes to the whole group; the supervisor decides who ends when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Who was spawned spawns: each loader of a run's images would import torch anew, for seconds.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    tracing.preload()
    redis = connect(settings)
    _wait_for(redis, supervisor)
    worker = ListeningWorker(
        [queue(redis, name)],
        connection=redis,
        serializer=JSONSerializer,
        worker_ttl=30,
        maintenance_interval=30,
        job_monitoring_interval=WATCH_SECONDS,
        exception_handlers=[partial(_blame_task, name, redis, settings)],
    )
    worker._work_horse_killed_handler = partial(_expire_horse, name, worker, settings)
    worker.supervisor = supervisor
    worker.offer = None if name == "inspect" else own_offer(settings)
    worker.step_seconds = settings.inspect_timeout_seconds if name == "inspect" else None
    worker.work(logging_level=settings.log_level)


def import_code(name: QueueName) -> ModuleType:
    """Import the code of a queue's tasks."""
    _doubt.value = True
    module = import_large(CODE[name])
    _doubt.value = False
    return module


def is_there_work(redis: Redis, name: QueueName) -> bool:
    """Tell whether a wake-up has something to do: by the time that it is heard, others may have done it."""
    kinds = [kind for kind, queue in QUEUES.items() if queue == name]
    return not kinds or bool(redis.zcard(f"dearkd:open:{kinds[0]}"))


def require_parent(parent: int) -> None:
    """End this process, and what it started, if its parent is gone: what nobody restarts or stops must not stay."""
    if os.getppid() != parent:
        end_this_process()


def _wait_for(redis: Redis, supervisor: int) -> None:
    pause = 0.2
    while True:
        require_parent(supervisor)
        try:
            redis.ping()
            return
        except Exception as error:
            log.warning("waiting for Redis: %s", error)
            time.sleep(pause)
            pause = min(5.0, pause * 2)


def _end_with(parent: int) -> None:
    """In a thread of the horse. Its lease runs out."""
    while True:
        require_parent(parent)
        time.sleep(0.2)


def _expire_horse(
    name: QueueName, worker: ListeningWorker, settings: Settings, job: Any, pid: int, status: int, usage: Any
) -> None:
    """rq calls this when a work-horse ended by anything but the end of its task."""
    code = os.waitstatus_to_exitcode(status)
    cause = exit_clause(code)
    too_large = worker.overdue
    if worker.overdue:
        cause = f"took longer than {settings.inspect_timeout_seconds:g} s (DEARKD_INSPECT_TIMEOUT_SECONDS)"
    elif name == "inspect" and is_near_limit(usage, settings.inspect_memory_bytes, aborted=code == -signal.SIGABRT):
        too_large = code != -signal.SIGKILL
    _blame(
        name,
        cast(Redis, worker.connection),
        job,
        holder(os.getpid(), pid),
        cause + peak_clause(usage),
        too_large=too_large,
    )


def _blame_task(
    name: QueueName, redis: Redis, settings: Settings, job: Any, kind: type[BaseException], error: Any, trace: Any
) -> bool:
    """rq calls this, in the work-horse, when a task raised: its code does not import, or it has an error of its own."""
    if issubclass(kind, AbandonedJobError):
        return True  # rq, tidying up, found the task of a worker that was killed: whoever saw that has ended its leases
    cause = f"could not do its task: {kind.__name__}: {error}"
    usage = resource.getrusage(resource.RUSAGE_SELF)
    too_large = name == "inspect" and is_near_limit(usage, settings.inspect_memory_bytes)
    _blame(name, redis, job, holder(os.getppid(), os.getpid()), cause, too_large=too_large)
    # The next one would meet the same at once: a pause leaves the jobs to workers that can.
    time.sleep(BROKEN_SECONDS)
    return True


def _blame(name: QueueName, redis: Redis, job: Any, who: str, cause: str, *, too_large: bool = False) -> None:
    log.error("%s %s", who, cause)
    try:
        if name == "inspect":
            note_inspector_death(redis, str(job.args[0]), InspectorDeath(cause=cause, too_large=too_large))
        else:
            leases = Leases(redis)
            leases.offer = own_offer(Settings())
            leases.blame(next(kind for kind, queue in QUEUES.items() if queue == name), who, cause)
    except Unavailable as error:
        log.warning("%s; the leases of %s will run out", error, who)
