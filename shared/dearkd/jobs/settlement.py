"""Consequences of the end of a job: `final.json`, and the fate of the runs that wait for its dataset."""

from contextlib import suppress

from dearkd.documents import as_written, read_document
from dearkd.errors import Unavailable
from dearkd.jobs.model import Job, as_now, live_key
from dearkd.jobs.queue import QUEUES, wake
from dearkd.jobs.records import JobRecords, at
from dearkd.jobs.scripts import Transition
from dearkd.redis_client import Redis
from dearkd.storage.objects import Storage

UNSETTLED = "dearkd:unsettled"
"""Jobs that ended, and whose end has not had all its consequences yet."""


class Settlement(JobRecords):
    """Carries out the consequences of a job's end: who ends a job settles it, the reaper what was left."""

    def __init__(self, redis: Redis, storage: Storage) -> None:
        super().__init__(redis)
        self.storage = storage
        self._settle = Transition(redis, "settle")

    def settle(self, job: Job) -> None:
        """Write `final.json` of a job that has ended, queue or fail the runs that wait for it, drop its live picture.

        Idempotent.
        """
        while job.terminal:
            self.storage.put(final_key(job.id), as_written(job).model_dump_json(indent=2).encode())
            runs = self._settle(id=job.id, status=job.status, attempt=job.attempt, at=at())
            if runs is not None:
                for run in map(self.get, runs):
                    self.settle(run)
                    if run.status == "queued":
                        wake(self.redis, QUEUES["training"], run.id)
                if job.kind == "synthesis":
                    with suppress(Unavailable):  # nothing shows it any more, and `gc` removes it too
                        self.storage.delete(live_key(job.id))
                return
            latest = self.get(job.id)
            if not latest.terminal:
                # Retried meanwhile: what was just written speaks of an end that is none.
                self.storage.delete(final_key(job.id))
                latest = self.get(job.id)
            job = latest


def final_key(identifier: str) -> str:
    """The object in storage that says how a job ended."""
    return f"jobs/{identifier}/final.json"


def read_job(storage: Storage, key: str) -> Job:
    """The job that an object in storage describes.

    Raises:
        NotFound: if that is not there.
        Unreadable: naming the object, if it is no such record; `NewerSchema` if a newer version wrote it.
    """
    remedy = "restore it from a backup, or remove it from storage and post the job anew"
    return as_now(read_document(Job, storage.read(key), key, remedy))
