"""Workers: the process that listens on a queue, and the loop that a wake-up runs.

`dearkd worker synth` is a small supervisor without torch. It starts one rq worker a queue (`synth` and `inspect`, or
`train`), restarts one that dies, runs the reaper, and on SIGTERM lets running units go back or reach a checkpoint. An
rq worker (`dearkd.work.listener`) forks a work-horse for each wake-up, which does the work.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Literal, TypeVar

import psutil

from dearkd import tracing
from dearkd.choices import Kind
from dearkd.documents import as_written
from dearkd.errors import Canceled, DearKDError, DiskFull, LostLease, NewerSchema, OutOfMemory, Unavailable
from dearkd.jobs.deaths import exit_clause as exit_clause
from dearkd.jobs.deaths import holder
from dearkd.jobs.inspections import uploaded_bytes
from dearkd.jobs.leases import Claim
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job, JobError
from dearkd.jobs.queue import QUEUES, QueueName, wake
from dearkd.jobs.reaper import Reaper
from dearkd.jobs.store import JobStore, refusal_key
from dearkd.key_variables import drop_keys
from dearkd.log_lines import about, log_to_stderr
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd.storage.objects import AlreadyExists, Storage, is_disk_full
from dearkd.work.attempt import OUTAGE_SECONDS, Attempt, Died, HandBack
from dearkd.work.listener import import_code, is_there_work, listen
from dearkd.work.memory_limit import limit_memory
from dearkd.work.own_offer import own_offer

log = logging.getLogger(__name__)

WorkerKind = Literal["synth", "trainer"]

LISTENS: dict[WorkerKind, tuple[QueueName, ...]] = {"synth": ("synth", "inspect"), "trainer": ("train",)}

GRACE_SECONDS = 8.0
"""Less than what `up` and a container engine give this process before they kill it."""

UPLOAD_COPIES = 3
"""Copies of an uploaded file that an inspection may hold: the file, the network, and what its check computes."""

T = TypeVar("T")

Perform = Callable[[Attempt], None]
"""Does a unit's work, publishes and marks it. Raises to fail the job; `Attempt.check`'s exceptions pass through."""


def synthesize(job: str) -> None:
    """The rq task of synth workers; `job` is only what woke it."""
    _begin("synthesis", job)


def train(job: str) -> None:
    """The rq task of trainer workers; `job` is only what woke it."""
    _begin("training", job)


def inspect(ticket: str) -> None:
    """The rq task of inspectors."""
    settings = Settings()
    limit_memory(settings.inspect_memory_bytes + UPLOAD_COPIES * uploaded_bytes(connect(settings), ticket))
    with about(ticket=ticket):
        import_code("inspect").inspect(ticket)


def _begin(kind: Kind, job: str) -> None:
    """Import the service and let it drain, unless there is nothing to do: then torch need not be imported.

    By name, since `dearkd` imports no service; and here, since rq hides why a module does not import.
    """
    with suppress(Unavailable):
        if not is_there_work(connect(Settings()), QUEUES[kind]):
            return
    import_code(QUEUES[kind]).drain(job)


def open_ledger(settings: Settings) -> Ledger:
    redis = connect(settings)
    return Ledger(JobStore(redis, Storage.open(settings, redis)))


def drain(kind: Kind, perform: Perform, settings: Settings | None = None) -> int:
    """Claim and perform units of a kind until none is open, the time is up, or the process is asked to end.

    Returns:
        How many units were performed.
    """
    settings = settings or Settings()
    handing_back = threading.Event()

    def hand_back(signum: int, frame: FrameType | None) -> None:
        handing_back.set()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, hand_back)
    with tracing.exporting(f"dearkd-worker-{QUEUES[kind]}"):
        return _perform_units(kind, perform, settings, handing_back)


def _perform_units(kind: Kind, perform: Perform, settings: Settings, handing_back: threading.Event) -> int:
    ledger = open_ledger(settings)
    ledger.offer = own_offer(settings)
    until = time.monotonic() + settings.drain_seconds
    performed = 0
    while not handing_back.is_set():
        if time.monotonic() > until:
            _outlast(lambda: wake(ledger.redis, QUEUES[kind], "drain"), handing_back)
            break
        claim = _outlast(lambda: ledger.claim(kind, settings.lease_seconds), handing_back)
        if claim is None:
            break
        job = _outlast(partial(_accepted, claim, ledger), handing_back)
        if job is None:
            continue
        with (
            _traced(claim, job),
            about(job_id=claim.job, unit=claim.unit, attempt=job.attempt, claim=claim.token),
            Attempt(claim, job, ledger, settings, handing_back) as attempt,
        ):
            _perform(attempt, perform, handing_back)
        performed += 1
    return performed


def _traced(claim: Claim, job: Job) -> AbstractContextManager[None]:
    """The span of an attempt at a unit, below that of the request that posted the job."""
    attributes: dict[str, str | int] = {
        "dearkd.job.id": job.id,
        "dearkd.job.kind": job.kind,
        "dearkd.job.attempt": job.attempt,
        "dearkd.unit": claim.unit,
        "dearkd.claim": claim.token,
        "dearkd.holder": holder(os.getppid(), os.getpid()),
    }
    part = claim.unit
    if part.isdigit():
        part, attributes["dearkd.shard"] = "shard", int(part)
    parent = {"traceparent": job.traceparent} if job.traceparent else {}
    return tracing.span(f"{job.kind} {part}", attributes, role="consumer", parent=parent)


def _outlast(action: Callable[[], T], handing_back: threading.Event) -> T | None:
    """Return what `action` does, once Redis and storage can be reached; None if the process is asked to end first."""
    while True:
        try:
            return action()
        except Unavailable as error:
            log.warning("waiting: %s", error)
        if handing_back.wait(OUTAGE_SECONDS):
            return None


def _accepted(claim: Claim, ledger: Ledger) -> Job | None:
    """The record of a claimed unit's job; None, and no record, if whoever asked for it was told that it failed.

    That must be written: a `job.json` that is only missing (an old snapshot of the storage) is written again, since
    nothing that was accepted is forgotten for what storage lacks.

    Raises:
        Unavailable: if the storage that misses it cannot prove that it is the one that is known.
    """
    storage, key = ledger.store.storage, f"jobs/{claim.job}/job.json"
    if not storage.exists(key):
        if storage.exists(refusal_key(claim.job)):
            log.warning("%s was never accepted: forgotten", claim.job)
            ledger.discard(claim.job)
            storage.delete(refusal_key(claim.job))
            return None
        log.warning("%s has lost its job.json in storage: it is written again from Redis", claim.job)
        with suppress(AlreadyExists):
            storage.create(key, as_written(ledger.store.get(claim.job)).model_dump_json(indent=2).encode())
    return ledger.store.get(claim.job)


def _perform(attempt: Attempt, perform: Perform, handing_back: threading.Event) -> None:
    """One unit; whatever happens in it ends as a mark, a release or a failure of the job."""
    ledger, claim = attempt.ledger, attempt.claim
    failure: JobError | None = None
    death: str | None = None
    marked = to_newer = False
    roomier: int | None = None
    attempt.note(f"unit {claim.unit} begins on {holder(os.getppid(), os.getpid())}")
    try:
        perform(attempt)
        marked = True
    except HandBack:
        why = "the job was paused" if attempt.paused else "the worker was asked to end"
        attempt.note(f"unit {claim.unit} goes back: {why}")
    except Died as error:
        death = str(error)
    except Canceled:
        attempt.note(f"unit {claim.unit} ends: the job was canceled")
    except LostLease as error:
        log.warning("%s; this attempt published nothing more", error)
        attempt.note(f"an attempt at unit {claim.unit} had lost its lease, and published nothing more")
    except DearKDError as error:
        if isinstance(error, Unavailable) and not isinstance(error, DiskFull):
            attempt.note(f"unit {claim.unit} goes back: {error.message}")
            handing_back.wait(OUTAGE_SECONDS)
        elif error.code == NewerSchema.default_code:
            to_newer = True
            attempt.note(f"unit {claim.unit} goes back, to workers of a newer version: {error.message}")
        elif isinstance(error, OutOfMemory) and (
            roomier := _outlast(partial(ledger.memory_beyond, attempt.job), handing_back)
        ):
            attempt.note(f"unit {claim.unit} goes back, to workers with more memory: {error.message}")
        else:
            failure = JobError(code=error.code, message=error.message, retryable=error.retryable)
    except Exception as error:
        log.exception("%s unit %s", claim.job, claim.unit)
        if is_disk_full(error):
            full = DiskFull(f"no room is left on this worker's disk ({error}): make room and retry")
            failure = JobError(code=full.code, message=full.message, retryable=full.retryable)
        else:
            attempt.note(traceback.format_exc().rstrip())
            failure = JobError(code="internal_error", message=f"{type(error).__name__}: {error}", retryable=True)
    attempt.stop_reporting()
    tracing.annotate({"dearkd.unit.done": marked})
    if failure is not None:
        tracing.fail(failure.code, failure.message)
    if death is not None:
        tracing.fail("worker_died", death)
        _outlast(partial(ledger.expire, holder(os.getppid(), os.getpid()), death), handing_back)
    elif not marked:
        _outlast(lambda: _end_attempt(ledger, claim, failure, to_newer=to_newer, memory_bytes=roomier), handing_back)
    try:
        ledger.log.keep(claim.job)
    except Unavailable as error:
        log.warning("the log of %s is not stored yet: %s", claim.job, error)


def _end_attempt(
    ledger: Ledger, claim: Claim, failure: JobError | None, *, to_newer: bool, memory_bytes: int | None
) -> None:
    """Fail the job, or give back what is not done; neither changes anything if the claim is not the current one."""
    if failure is None:
        return ledger.release(claim, to_newer=to_newer, memory_bytes=memory_bytes)
    try:
        outcome = ledger.fail(claim.job, failure, claim)
    except LostLease as lost:
        log.warning("%s", lost)
    else:
        ledger.log.add(claim.job, f"{outcome}: {failure.message}")


# --- the process ------------------------------------------------------------------------------------------------------


def main(kind: WorkerKind) -> int:
    """Run a worker until SIGTERM or SIGINT; returns the exit status."""
    # Threads of torch that spin while they wait starve those of the worker beside this one: 20 to 40 times slower
    # steps were measured with two jobs on two cores. OpenMP reads this when torch is imported, in the work-horse.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    drop_keys()
    settings = Settings()
    log_to_stderr(settings)
    tracing.warn_of_missing()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    reaper = Reaper(open_ledger(settings), settings)
    context = multiprocessing.get_context("spawn")
    children: dict[QueueName, BaseProcess] = {}
    doubts = {name: context.Value("b", lock=False) for name in LISTENS[kind]}
    started = dict.fromkeys(LISTENS[kind], 0.0)
    while not stop.is_set():
        for name in LISTENS[kind]:
            child = children.get(name)
            if (child is None or not child.is_alive()) and time.monotonic() - started[name] > 1.0:
                if child is not None:
                    log.warning("the %s worker %s; it is started again", name, exit_clause(child.exitcode or 0))
                    _expire(
                        reaper.ledger,
                        holder(child.pid or 0),
                        f"ended with its rq worker, which {exit_clause(child.exitcode or 0)}",
                    )
                children[name] = context.Process(
                    target=listen, args=(name, os.getpid(), doubts[name]), name=f"rq-{name}"
                )
                children[name].start()
                started[name] = time.monotonic()
        reaper.step()
        stop.wait(1.0)
    _end(list(children.values()))
    return 0


def _end(children: list[BaseProcess]) -> None:
    """SIGTERM to the workers and their horses (which hand back or save), then SIGKILL to what is left."""
    told, all_of_them = [], []
    for child in children:
        with suppress(psutil.NoSuchProcess):
            worker = psutil.Process(child.pid)
            # Not to what a horse started: a run that loses a loader of its data fails before it can hand back.
            told += [worker, *worker.children()]
            all_of_them += [worker, *worker.children(recursive=True)]
    for process in told:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(all_of_them, timeout=GRACE_SECONDS)
    for process in alive:
        _signal(process, signal.SIGKILL)
    for child in children:
        child.join(timeout=5)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _expire(ledger: Ledger, name: str, cause: str) -> None:
    try:
        if ledger.expire(name, cause):
            log.warning("%s %s in the middle of its work", name, cause)
    except Unavailable as error:
        log.warning("%s; the leases of %s will run out", error, name)
