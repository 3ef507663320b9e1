"""Jobs as a caller may look at and steer them, over `/v1` and from its pages alike."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Final

from pydantic import ValidationError

from dearkd.choices import Kind
from dearkd.errors import NotFound, Unavailable
from dearkd.jobs.model import Job, kind_of
from dearkd.jobs.offers import Needs
from dearkd.jobs.queue import awaited_worker, listening
from dearkd_api.backend import Backend

COLLECTIONS: Final[Mapping[Kind, str]] = {"synthesis": "synthesis-jobs", "training": "training-runs"}


def require_kind(kind: Kind, identifier: str) -> None:
    """Raises `NotFound` if an id is not one of a job of that kind."""
    if kind_of(identifier) != kind:
        raise NotFound(f"there is no {identifier!r} in {COLLECTIONS[kind]}")


def find(kind: Kind, identifier: str, backend: Backend, caller: str | None) -> Job:
    """The job. Raises `NotFound` if there is none of that kind that the caller may see."""
    require_kind(kind, identifier)
    return backend.store.get(identifier, owner=caller)


def shown(jobs: Iterable[Job], backend: Backend) -> list[Job]:
    """The jobs as they are shown: one that is queued where no worker is there that could take it says so.

    The reaper writes that into records, but of what was just accepted it has not yet, and it looks at the first hundred
    alone.
    """
    there = cache(partial(listening, backend.store.redis))

    def told(job: Job) -> Job:
        if job.status == "queued" and job.retry_at is None:
            # A job that was accepted just now must be the answer; a spec that was altered is its worker's to refuse.
            with suppress(Unavailable, ValidationError):
                awaited = awaited_worker(job.kind, Needs.of_spec(job.spec), there(job.kind))
                return job if awaited is None else job.model_copy(update={"waiting_for": awaited})
        return job

    return [told(job) for job in jobs]


def seen(kind: Kind, identifier: str, backend: Backend, caller: str | None) -> Job:
    """The job as it is shown. Raises `NotFound` likewise."""
    return shown([find(kind, identifier, backend, caller)], backend)[0]


def cancel(kind: Kind, identifier: str, backend: Backend, caller: str | None) -> Job:
    """Cancel a job. Raises `Conflict` if it has ended."""
    find(kind, identifier, backend, caller)
    return backend.store.cancel(identifier)


def pause(kind: Kind, identifier: str, backend: Backend, caller: str | None) -> Job:
    """Let a job stand still. Raises `Conflict` if it has ended."""
    find(kind, identifier, backend, caller)
    return backend.store.pause(identifier)


def resume(kind: Kind, identifier: str, backend: Backend, caller: str | None) -> Job:
    """Let a paused job go on. Raises `Conflict` if it is not paused."""
    find(kind, identifier, backend, caller)
    return backend.store.resume(identifier)


def retry(kind: Kind, identifier: str, backend: Backend, caller: str | None, *, from_beginning: bool = False) -> Job:
    """Continue a failed, canceled or lost job, or let it start over. Raises `Conflict` if it is none of these."""
    require_kind(kind, identifier)
    job = backend.store.retry(identifier, owner=caller, from_beginning=from_beginning)
    if from_beginning:
        with suppress(Unavailable):  # the line is lost then; the job goes on all the same
            backend.log.add(identifier, "retried from the beginning, on request; what was made before is deleted")
    return job


ACTIONS: Final[Mapping[str, Callable[[Kind, str, Backend, str | None], Job]]] = {
    "pause": pause,
    "resume": resume,
    "cancel": cancel,
    "retry": retry,
}
"""All that a caller may do to a job, by name."""


def actions_of(job: Job) -> list[str]:
    """The actions that a job's status allows."""
    if job.status in ("failed", "canceled"):
        return ["retry"]
    if job.terminal or job.status == "canceling":
        return []
    return ["resume" if job.status == "paused" else "pause", "cancel"]
