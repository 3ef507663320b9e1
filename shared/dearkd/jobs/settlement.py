"""What follows from the end of a job: `final.json`, and the fate of the runs that wait for its dataset."""

from typing import cast

from pydantic import ValidationError
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from dearkd.errors import Unreadable
from dearkd.jobs import scripts
from dearkd.jobs.model import ACTIVE, Job, JobError, kind_of, place_of
from dearkd.jobs.queue import QUEUES, wake
from dearkd.jobs.records import JobRecords, at
from dearkd.redis_client import job_key, reachable
from dearkd.storage.objects import Storage

RANKS = {"high": 0, "normal": 1, "low": 2}
WATCH_TRIES = 50
UNSETTLED = "dearkd:unsettled"
"""Jobs that ended, and whose end has not had all its consequences yet."""


class Settlement(JobRecords):
    """Ends jobs' stories; whoever ends a job settles it, and the reaper what is left unsettled."""

    def __init__(self, redis: Redis, storage: Storage) -> None:
        super().__init__(redis)
        self.storage = storage
        self._transition = redis.register_script(scripts.TRANSITION)

    def settle(self, job: Job) -> None:
        """What follows from the end of a job: `final.json`, and the fate of the runs that wait for it. Idempotent."""
        while job.terminal:
            self.storage.put(final_key(job.id), job.model_dump_json(indent=2).encode())
            if job.kind == "synthesis":
                self._settle_waiting(job)
            with reachable():
                self.redis.srem(UNSETTLED, job.id)
            latest = self.get(job.id)
            if (latest.status, latest.attempt) == (job.status, job.attempt):
                return
            if not latest.terminal:
                # Retried meanwhile: what was just written speaks of an end that is none.
                self.storage.delete(final_key(job.id))
                latest = self.get(job.id)
            job = latest

    def _settle_waiting(self, job: Job) -> None:
        """Queue or fail the runs that are blocked on a finished synthesis job."""
        key = f"{job_key(job.id)}:waiting"
        with reachable():
            for _ in range(WATCH_TRIES):
                with self.redis.pipeline(transaction=True) as pipe:
                    try:
                        pipe.watch(job_key(job.id), key)
                        status = cast("bytes | None", pipe.hget(job_key(job.id), "status"))
                        if status is None or status.decode() in ACTIVE:
                            return  # retried meanwhile: they wait on
                        runs = sorted(run.decode() for run in cast("set[bytes]", pipe.smembers(key)))
                        pipe.watch(*(job_key(run) for run in runs)) if runs else None
                        blocked = [run for run in runs if pipe.hget(job_key(run), "status") == b"blocked"]
                        priorities = {run: cast(bytes, pipe.hget(job_key(run), "priority")).decode() for run in blocked}
                        pipe.multi()
                        pipe.delete(key)
                        for run in blocked:
                            self._release_or_fail(pipe, run, priorities[run], job.id, status.decode())
                        pipe.execute()
                        break
                    except WatchError:
                        continue
        for run in blocked:
            self.settle(self.get(run))

    def _release_or_fail(self, pipe: "Pipeline", run: str, priority: str, job: str, status: str) -> None:
        if status == "succeeded":
            self._transition(args=[run, "queued", at(), "blocked", "", ""], client=pipe)
            self._start_or_wait(pipe, run, priority, None)
            return
        error = JobError(
            code="dataset_failed", message=f"the synthesis job {job}, which makes its dataset, {status}", retryable=True
        )
        args = [run, "failed", at(), "blocked", "", "", "error", error.model_dump_json()]
        self._transition(args=args, client=pipe)

    def _open(
        self, pipe: "Pipeline", identifier: str, priority: str, units: list[str], student_every: int | None = None
    ) -> None:
        kind = kind_of(identifier)
        scores = {unit: place_of(unit, student_every) for unit in units}
        pipe.delete(f"{job_key(identifier)}:open")
        pipe.zadd(f"{job_key(identifier)}:open", scores)
        pipe.zadd(f"dearkd:open:{kind}", {identifier: RANKS[priority] * 2**40})

    def _start_or_wait(self, pipe: "Pipeline", identifier: str, priority: str, waits_for: str | None) -> None:
        if waits_for is not None:
            pipe.sadd(f"{job_key(waits_for)}:waiting", identifier)
            return
        self._open(pipe, identifier, priority, ["run"])
        wake(self.redis, QUEUES["training"], identifier, pipeline=pipe)


def final_key(identifier: str) -> str:
    """Where storage says how a job ended."""
    return f"jobs/{identifier}/final.json"


def read_job(storage: Storage, key: str) -> Job:
    """A job as storage has it.

    Raises:
        NotFound: if that is not there.
        Unreadable: naming the object, if it is no such record.
    """
    try:
        return Job.model_validate_json(storage.read(key))
    except ValidationError as error:
        remedy = "restore it from a backup, or remove it from storage and post the job anew"
        raise Unreadable(key, remedy, error) from None
