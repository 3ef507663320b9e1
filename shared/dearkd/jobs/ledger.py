"""The ledger of work: units claimed under leases, reported on, done, given back or taken back.

What clients ask of a job is the store's; what workers do with it is here. Every step is fenced: a claim whose lease
went to somebody else changes nothing any more.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast

from pydantic import BaseModel

from dearkd.choices import Status
from dearkd.errors import Conflict, LostLease, NotFound, Unreadable
from dearkd.jobs.deaths import holder as holder
from dearkd.jobs.leases import Claim as Claim
from dearkd.jobs.leases import Leases
from dearkd.jobs.log import JobLog
from dearkd.jobs.measures import Measures
from dearkd.jobs.model import Job, JobError, Progress, sources_of
from dearkd.jobs.offers import Needs, offers
from dearkd.jobs.queue import QUEUES, wake_missing
from dearkd.jobs.records import add_event, at
from dearkd.jobs.scripts import Transition
from dearkd.jobs.settlement import UNSETTLED
from dearkd.jobs.store import JobStore
from dearkd.redaction import public
from dearkd.redis_client import job_index, job_key, milliseconds
from dearkd.specs.base import MAX_RETRIES
from dearkd.specs.budget import EndedEarly

log = logging.getLogger(__name__)

RETRY_SECONDS = 10
"""The wait before the first automatic retry; each is twice as long as the one before. As Kubernetes' `backoffLimit`."""
MAX_RETRY_SECONDS = 360
LAST_LINES = 8
"""Lines of a job's log that stand in the error of one that killed its workers."""
FEW_WORKERS = 4
"""The workers at a job of whom each makes its progress and events anew each second; more of them do so as often."""
CLOCK = ("ran", "running_since")
"""Fields of a record by which it is known how long the job has run."""
SILENT = "fell silent: it was stopped, or its machine or its connection to Redis was lost"


class Ledger(Leases):
    """Steps of workers at jobs. Raises `Unavailable` (`redis_unavailable`) when Redis cannot be reached.

    Attributes:
        measures: what this process measured; the next report takes it along.
    """

    def __init__(self, store: JobStore) -> None:
        super().__init__(store.redis)
        self.store = store
        self.measures = Measures()
        self.log = JobLog(store.redis, store.storage)
        self._beat = Transition(store.redis, "beat")
        self._report = Transition(store.redis, "report")
        self._done = Transition(store.redis, "done")
        self._conclude = Transition(store.redis, "conclude")
        self._release = Transition(store.redis, "release")
        self._add_row = Transition(store.redis, "add_row")
        self._reclaim = Transition(store.redis, "reclaim")
        self._end = Transition(store.redis, "end_job")
        self._schedule_retry = Transition(store.redis, "schedule_retry")
        self._open_due = Transition(store.redis, "open_due")
        self._discard = Transition(store.redis, "discard")
        self._wait_for = Transition(store.redis, "wait_for")

    def beat(self, claim: Claim, lease_seconds: float) -> Status:
        """Prolong a lease; returns the job's status.

        Raises:
            LostLease: if another attempt holds the unit now.
        """
        status = self._beat(**_named(claim), lease=int(lease_seconds * 1000))
        if status == "lost":
            raise LostLease(f"{claim.job} unit {claim.unit}: the lease was lost, another attempt works on it")
        return cast(Status, status)

    def report(
        self,
        claim: Claim,
        *,
        done: int,
        per_second: float | None,
        metrics: dict[str, Any],
        base: int = 0,
    ) -> None:
        """Progress of a claimed unit, added to that of the job's other units. Of a lost claim nothing stays.

        Where many work on a job, what they tell is kept, and a few of them each second add it up: else the work of each
        would grow with their number.

        Args:
            claim: the unit at work.
            done: images or epochs of this unit so far.
            per_second: the rate of this worker.
            metrics: latest values by name; replaces the job's.
            base: what was done before, where finished units do not say so themselves.
        """
        key = job_key(claim.job)
        mine = json.dumps({"done": done, "per_second": per_second})
        found = self._report(**_named(claim), partial=mine, few=FEW_WORKERS, pause=1000 // FEW_WORKERS)
        if found is None:
            return
        partial, (progress, finished, stops_after, *clock), now = found
        if progress is None:
            return
        parts = [json.loads(value) for value in partial]
        before = Progress.model_validate_json(progress)
        count = base + sum(part["done"] for part in parts)
        count += int(finished or 0)
        count = min(count, before.total) if before.total is not None else count
        rate = sum(part["per_second"] or 0.0 for part in parts) or None
        left = None if rate is None or before.total is None else (before.total - count) / rate
        if left is not None and stops_after:
            left = max(0.0, min(left, float(stops_after) - _spent(clock, (int(now[0]), int(now[1])))))
        after = before.model_copy(update={"done": count, "per_second": rate, "eta_seconds": left})
        pipe = self.redis.pipeline(transaction=True)
        pipe.hset(key, "progress", after.model_dump_json())
        add_event(pipe, claim.job, "progress", after.model_dump())
        if metrics:
            pipe.hset(key, "metrics", json.dumps(metrics))
            add_event(pipe, claim.job, "metrics", metrics)
        with self.measures.told(pipe):
            pipe.execute()

    def tell_measures(self) -> None:
        """Tell Redis what this process measured, where no report does."""
        pipe = self.redis.pipeline(transaction=True)
        with self.measures.told(pipe):
            pipe.execute()

    def done(self, claim: Claim, payload: BaseModel) -> None:
        """Mark a unit as done; with the last of its group the next group can be claimed.

        Raises:
            LostLease: if the claim is not the current one; nothing was marked.
        """
        samples = int(getattr(payload, "samples", 0))
        status = self._done(**_named(claim), at=at(), payload=payload.model_dump_json(), samples=samples)
        if status == "lost":
            raise LostLease(f"{claim.job} unit {claim.unit}: another attempt works on it; this one marks nothing")
        if status == "canceled":
            self.store.settle(self.store.get(claim.job))

    def conclude(self, claim: Claim, first: str, ended: EndedEarly) -> bool:
        """Leave out the units from `first` on, but for the last group, if none of them has begun.

        The units before them are finished, and then the last group begins. Others who have claimed one of them, and not
        told of progress, have lost it.

        Returns:
            False if progress was told at another of them, or it is done: then nothing was changed.

        Raises:
            LostLease: if the claim is not the current one; nothing was changed.
        """
        status = self._conclude(**_named(claim), first=first, at=at(), ended_early=ended.model_dump_json())
        if status == "lost":
            raise LostLease(f"{claim.job} unit {claim.unit}: another attempt works on it; this one leaves nothing out")
        if status == "canceled":
            self.store.settle(self.store.get(claim.job))
        return bool(status != "begun")

    def ended_early(self, identifier: str) -> EndedEarly | None:
        """The reason why a job makes less than it planned; None where it makes all."""
        text = cast("bytes | None", self.redis.hget(job_key(identifier), "ended_early"))
        return None if text is None else EndedEarly.model_validate_json(text)

    def pace(self, identifier: str) -> tuple[float, int]:
        """The seconds that a job has run, without what it waited or was paused, and the images or epochs done so far.

        Since it was accepted, or retried on request, which keeps what was done before.
        """
        key = job_key(identifier)
        pipe = self.redis.pipeline(transaction=True)
        pipe.hmget(key, "done_samples", *CLOCK)
        pipe.hvals(f"{key}:partial")
        pipe.time()
        (finished, *clock), partial, now = pipe.execute()
        return _spent(clock, now), int(finished or 0) + sum(json.loads(value)["done"] for value in partial)

    def payloads(self, identifier: str) -> dict[str, bytes]:
        """Payloads of the units that are done, as they were written."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(f"{job_key(identifier)}:done"))
        return {unit.decode(): payload for unit, payload in found.items()}

    def payload(self, identifier: str, unit: str) -> bytes | None:
        """The payload of one unit; None where it is not done."""
        return cast("bytes | None", self.redis.hget(f"{job_key(identifier)}:done", unit))

    def complete(self, claim: Claim, result: dict[str, Any], *, total: int | None = None) -> None:
        """End a job as succeeded; runs that were blocked on its dataset are queued in the same step.

        Args:
            claim: the last unit.
            result: what it made.
            total: images or epochs that were done, where not all were that were planned.

        Raises:
            LostLease: if the claim is not the current one.
        """
        progress = self.store.get(claim.job).progress
        total = progress.total if total is None else total
        full = progress.model_copy(
            update={"done": progress.done if total is None else total, "total": total, "eta_seconds": 0.0}
        )
        self._step(claim.job, "succeeded", {"result": json.dumps(result), "progress": full.model_dump_json()}, claim)
        self.store.settle(self.store.get(claim.job))

    def release(self, claim: Claim, *, to_newer: bool = False, memory_bytes: int | None = None) -> None:
        """Give a unit back without blame: on SIGTERM, on an outage, when canceled. A lost claim is no error.

        With `to_newer` no worker of this version, or an older one, claims of the job again; with `memory_bytes` none
        of less memory.
        """
        needs = Job.newest + 1 if to_newer else None
        if self._release(**_named(claim), at=at(), needs=needs, memory_bytes=memory_bytes) == "canceled":
            self.store.settle(self.store.get(claim.job))

    def memory_beyond(self, job: Job) -> int | None:
        """The least memory that is more than this worker's, if another one that could take the job has so much.

        Else None; so too of a run on a Ray cluster, whose nodes ran out of memory, and no worker.
        """
        own = self.offer
        if own is None or job.spec.get("engine") == "ray":
            return None
        more = {"device": own.device, "memory_bytes": own.memory_bytes + 1}
        needs = Needs.of_spec(job.spec).model_copy(update=more)
        return needs.memory_bytes if any(one.fits(needs) for one in offers(self.redis, QUEUES[job.kind])) else None

    def wait_for(self, claim: Claim, what: str | None) -> None:
        """Say what a running job waits for, which stops its clock; None: nothing more. A lost claim changes nothing."""
        self._wait_for(**_named(claim), what=what)

    def set_rows(self, identifier: str, rows: Sequence[dict[str, Any]]) -> None:
        """Replace a run's metrics: what a resumed run starts from."""
        pipe = self.redis.pipeline(transaction=True)
        pipe.delete(f"{job_key(identifier)}:rows")
        if rows:
            pipe.rpush(f"{job_key(identifier)}:rows", *(json.dumps(row) for row in rows))
        pipe.execute()

    def forgive(self, claim: Claim) -> None:
        """Forget the deaths of a unit that has got further, to a checkpoint: only deaths in a row count."""
        self.redis.hdel(f"{job_key(claim.job)}:deaths", claim.unit)

    def add_row(self, claim: Claim, row: dict[str, Any]) -> None:
        """Append a row of metrics, if the claim is the current one."""
        self._add_row(**_named(claim), row=json.dumps(row))

    def reap(self, *, max_deaths: int, silent_too: bool = True) -> list[tuple[Claim, str]]:
        """Take back units whose lease ran out, fail jobs that kill their workers, begin retries, and wake the queues.

        Args:
            max_deaths: in a row, after which a job fails.
            silent_too: also those of whom nothing was heard for too long, not only those that `expire` named.

        Returns:
            What was taken back, and the job's status afterwards.
        """
        taken: list[tuple[Claim, str]] = []
        until = milliseconds(self.redis) if silent_too else 0
        for member in cast("list[bytes]", self.redis.zrangebyscore("dearkd:leases", "-inf", until)):
            identifier, _, unit = member.decode().partition("#")
            outcome = self._reclaim(id=identifier, unit=unit, at=at())
            if outcome is None:
                continue
            status, deaths, who, cause = outcome
            self._take_back(identifier, unit, status, int(deaths), f"{who} {cause or SILENT}", max_deaths)
            taken.append((Claim(identifier, unit, ""), self._status(identifier)))
        self._end_late()
        self._open_due()
        for kind in QUEUES:
            wake_missing(self.redis, kind)
        # Last, since it needs storage: while that is away, the rest must go on.
        for ended in cast("set[bytes]", self.redis.smembers(UNSETTLED)):
            try:
                self._settle(ended.decode())
            except NotFound:
                self.redis.srem(UNSETTLED, ended)
        return taken

    def _end_late(self) -> None:
        """Fail jobs that have run for longer than they may."""
        now = self.redis.time()
        indexes = [self.redis.zrange(job_index(kind, "running"), 0, -1) for kind in QUEUES]
        running = [identifier for found in cast("list[list[bytes]]", indexes) for identifier in found]
        pipe = self.redis.pipeline(transaction=False)
        for identifier in running:
            pipe.hmget(job_key(identifier.decode()), "timeout", *CLOCK)
        for identifier, (timeout, ran, since) in zip(running, pipe.execute() if running else [], strict=True):
            if not timeout or since is None:
                continue
            spent = _spent([ran, since], now)
            if spent > float(timeout):
                message = f"it ran for {spent:.0f} s, longer than the {float(timeout):g} s of its timeout_seconds"
                with suppress(Conflict):  # it has ended meanwhile
                    error = JobError(code="timed_out", message=message, retryable=True)
                    # Or its bound would be none: whoever wants it to run on says so.
                    self.fail(identifier.decode(), error, for_good=True)

    def _take_back(self, identifier: str, unit: str, status: str, deaths: int, death: str, max_deaths: int) -> None:
        """Tell the log that a unit lost its holder; after too many in a row, fail the job."""
        self.log.add(identifier, f"unit {unit} lost its worker: {death}")
        if deaths < max_deaths or status not in ("queued", "running"):
            return
        message = f"unit {unit} ended its worker {deaths} times in a row without progress; the last one, {death}"
        told = f"{message}. Its log ends:\n{self.log.end(identifier, LAST_LINES)}"
        # Its worker may have been too slow, not dead, and have ended the job meanwhile.
        with suppress(Conflict):
            outcome = self.fail(identifier, JobError(code="worker_died", message=told, retryable=True))
            self.log.add(identifier, f"{outcome}: {message}")
            self.log.keep(identifier)

    def discard(self, identifier: str) -> None:
        """Forget a record that was never accepted, since the answer to who asked was an error.

        That happens when Redis carries out what it was sent, but is lost before it says so.
        """
        self._discard(id=identifier)

    def fail(self, identifier: str, error: JobError, claim: Claim | None = None, *, for_good: bool = False) -> str:
        """End a job as failed, and with it the runs that wait for its dataset; or let it be tried again by itself.

        That happens if the error is retryable and the job has a retry left. Its message is for clients: paths of this
        machine and passwords are left out.

        Args:
            identifier: the job's id.
            error: the reason.
            claim: names the attempt, if only that may do this.
            for_good: True if the job is not to be tried again by itself.

        Returns:
            What becomes of the job, as a line of its log begins.

        Raises:
            LostLease: if `claim` is not the current one.
        """
        told = error.model_copy(update={"message": public(error.message)}).model_dump_json()
        held = _named(claim) if claim else {"id": identifier}
        if error.retryable and not for_good:
            outcome, *details = self._schedule_retry(
                **held, at=at(), error=told, due=_retry_times(milliseconds(self.redis))
            )
            _require_held(identifier, claim, outcome)
            if outcome == "ok":
                retry, bound, moment = details
                begins = f"at {moment}" if moment else "when the job is resumed"
                return f"retry {retry} of {bound} begins {begins}, since the attempt failed"
        self._step(identifier, "failed", {"error": told}, claim)
        self._settle(identifier)
        return "failed"

    def _settle(self, identifier: str) -> None:
        """Settle a job; of one that this version cannot read that is left to a reaper that can."""
        try:
            self.store.settle(self.store.get(identifier))
        except Unreadable as error:
            log.warning("%s is not settled here: %s", identifier, error)

    def _status(self, identifier: str) -> str:
        """The status of a job, whatever else is in its record."""
        found = cast("bytes | None", self.redis.hget(job_key(identifier), "status"))
        if found is None:
            raise NotFound(f"there is no job {identifier!r}")
        return found.decode()

    def _step(self, identifier: str, target: Status, fields: dict[str, str], claim: Claim | None) -> None:
        held = _named(claim) if claim else {"id": identifier}
        outcome, *details = self._end(**held, status=target, at=at(), sources=sources_of(target), fields=fields)
        _require_held(identifier, claim, outcome)
        if outcome == "refused":
            raise Conflict(f"{identifier} is {details[0]} and cannot become {target}")


def _spent(clock: Sequence[bytes | str | None], now: tuple[int, int]) -> float:
    """The seconds that a job has run, of its `CLOCK` and Redis' time."""
    ran, since = clock
    seconds, microseconds = now
    return float(ran or 0) + (0.0 if since is None else max(0.0, seconds + microseconds / 1e6 - float(since)))


def _require_held(identifier: str, claim: Claim | None, outcome: str) -> None:
    """Raise what it means that a step found no job, or another claim than the one that was named."""
    if outcome == "missing":
        raise NotFound(f"there is no job {identifier!r}")
    if outcome == "lost" and claim:
        raise LostLease(f"{identifier} unit {claim.unit}: another attempt works on it; this one changes nothing")


def _retry_times(now: int) -> list[tuple[int, str]]:
    """The beginnings of a first automatic retry, a second, and so on, if it fails `now`: in ms and as RFC 3339."""
    times = []
    for number in range(MAX_RETRIES):
        due = now + 1000 * min(RETRY_SECONDS * 2**number, MAX_RETRY_SECONDS)
        times.append((due, datetime.fromtimestamp(due / 1000, UTC).isoformat(timespec="milliseconds")))
    return times


def _named(claim: Claim) -> dict[str, str]:
    """A claim, as transitions take it."""
    return {"id": claim.job, "unit": claim.unit, "token": claim.token}
