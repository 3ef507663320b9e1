"""Inspections: what the API leaves to the inspector, since it holds no torch or takes long. No torch here.

The API leaves a *ticket* in Redis and wakes the inspector, a small rq worker beside the synth worker. Teachers and
datasets on their way into storage are registered so: the ticket carries the id that the resource will have, and the
inspector writes its manifest. A teacher's check on a dataset and a model's prediction are questions: the answer is the
ticket's result. What a ticket needs of an upload lies under `tmp/{id}/` in storage until it is closed.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from dearkd.errors import Conflict, CorruptData, DearKDError, FieldError, InvalidInput, Unavailable
from dearkd.jobs.deaths import INSPECTOR_DEATHS, InspectorDeath, inspector_death
from dearkd.jobs.model import now
from dearkd.jobs.queue import TIMEOUT_SECONDS, queue, require_worker, step_key, wake
from dearkd.redis_client import Redis
from dearkd.settings import Settings
from dearkd.storage.objects import Storage

TICKET_SECONDS = 2 * TIMEOUT_SECONDS["inspect"]
RESULT_SECONDS = 7 * 86400
"""For so long the result of an inspection can be asked for."""
OPEN = "dearkd:inspections"
"""Set: the tickets that wait for an answer."""
AWAKE_SECONDS = 30
"""After a wake-up, before the inspector may be woken again for the same ticket."""

_ERRORS: dict[str, type[DearKDError]] = {
    kind.__name__: kind for kind in (InvalidInput, Conflict, CorruptData, Unavailable, DearKDError)
}


class Refusal(BaseModel):
    """An error of dearkd's tree, as it travels on a ticket."""

    model_config = ConfigDict(frozen=True)

    kind: str
    code: str
    message: str
    errors: list[tuple[str, str]] = Field(default_factory=list)
    """JSON pointers and details."""

    @classmethod
    def of(cls, error: DearKDError) -> "Refusal":
        kind = next(base.__name__ for base in type(error).__mro__ if base.__name__ in _ERRORS)
        return cls(
            kind=kind, code=error.code, message=error.message, errors=[(e.pointer, e.detail) for e in error.errors]
        )

    @property
    def error(self) -> DearKDError:
        errors = [FieldError(pointer, detail) for pointer, detail in self.errors]
        return _ERRORS[self.kind](self.message, code=self.code, errors=errors)


class Ticket(BaseModel):
    """An inspection under way, or how it ended."""

    model_config = ConfigDict(frozen=True)

    id: str
    """The id of a teacher (`tch-`) or dataset (`ds-`) to come, a check (`chk-`) or a prediction (`prd-`)."""
    state: Literal["waiting", "inspecting", "ready", "failed"] = "waiting"
    request: dict[str, Any]
    """The request, in a form that the inspector knows."""
    owner: str | None = None
    """Whose it is or will be: as of a job."""
    refusal: Refusal | None = None
    result: dict[str, Any] | None = None
    """The answer to a question."""
    created_at: datetime = Field(default_factory=now)

    @property
    def under_way(self) -> bool:
        return self.state in ("waiting", "inspecting")


class Inspections:
    """All tickets. Every method raises `Unavailable` (`redis_unavailable`) when Redis cannot be reached."""

    def __init__(self, redis: Redis, storage: Storage) -> None:
        self.redis = redis
        self.storage = storage

    def require_inspector(self) -> None:
        """Raises `Unavailable` (`inspector_unavailable`) if no inspector was heard of lately."""
        require_worker(self.redis, "inspect")

    def open(self, ticket: Ticket) -> None:
        """Write a ticket and wake the inspector, both or neither.

        Raises:
            Conflict: `already_registering`, if that id is under way.
        """
        standing = self.get(ticket.id)
        if standing is not None and standing.under_way:
            raise Conflict(f"{ticket.id} is being registered already: wait for that", code="already_registering")
        pipe = self.redis.pipeline(transaction=True)
        pipe.multi()  # said aloud, or rq would say it after our first command
        pipe.set(_key(ticket.id), ticket.model_dump_json(), ex=TICKET_SECONDS)
        pipe.set(_awake_key(ticket.id), 1, ex=AWAKE_SECONDS)
        pipe.delete(_beat_key(ticket.id))
        pipe.hdel(INSPECTOR_DEATHS, ticket.id)
        pipe.sadd(OPEN, ticket.id)
        wake(self.redis, "inspect", ticket.id, pipeline=pipe)
        pipe.execute()

    def get(self, identifier: str) -> Ticket | None:
        """The ticket, or None if there is none (any more). One whose inspector died has failed."""
        text, beat = cast("list[bytes | None]", self.redis.mget(_key(identifier), _beat_key(identifier)))
        if text is None:
            return None
        ticket = Ticket.model_validate_json(text)
        if not ticket.under_way:
            return ticket
        if death := inspector_death(self.redis, identifier):
            return self.close(ticket, _refusal_of(ticket, death))
        if ticket.state == "inspecting" and beat is None:
            lost = Unavailable("the inspector ended before it was done (out of memory?): try again", code="worker_died")
            return self.close(ticket, lost)
        return ticket

    def take(self, identifier: str, settings: Settings) -> Ticket | None:
        """The ticket, for the one inspector that is to look at it; None if it has ended or another does."""
        ticket = self.get(identifier)
        if ticket is None or ticket.state != "waiting":
            return None
        taken = self.redis.set(_beat_key(identifier), 1, px=int(settings.lease_seconds * 1000), nx=True)
        return ticket if taken else None

    def sweep(self) -> None:
        """See to tickets that nobody asks for: close those whose inspector died, and wake it for those it missed."""
        identifiers = sorted(cast("set[bytes]", self.redis.smembers(OPEN)))
        for identifier in (member.decode() for member in identifiers):
            ticket = self.get(identifier)
            if ticket is None or not ticket.under_way:
                self.redis.srem(OPEN, identifier)
            elif (
                # Its worker was killed between taking the task and beginning it, or is about to begin.
                ticket.state == "waiting"
                and not queue(self.redis, "inspect").count
                and self.redis.set(_awake_key(identifier), 1, ex=AWAKE_SECONDS, nx=True)
            ):
                wake(self.redis, "inspect", identifier)

    def close(
        self, ticket: Ticket, error: DearKDError | None = None, *, result: dict[str, Any] | None = None
    ) -> Ticket:
        """Say how an inspection ended; what was uploaded for it is deleted first."""
        self.storage.delete_prefix(upload_prefix(ticket.id))
        closed = ticket.model_copy(
            update={
                "state": "failed" if error else "ready",
                "refusal": Refusal.of(error) if error else None,
                "result": None if error else result,
            }
        )
        pipe = self.redis.pipeline(transaction=True)
        pipe.set(_key(ticket.id), closed.model_dump_json(), ex=RESULT_SECONDS if result else TICKET_SECONDS)
        pipe.delete(_beat_key(ticket.id), step_key(ticket.id))
        pipe.hdel(INSPECTOR_DEATHS, ticket.id)
        pipe.srem(OPEN, ticket.id)
        pipe.execute()
        return closed

    def forget(self, identifier: str) -> None:
        """Remove a ticket that nobody waits for any more, and what was uploaded for it."""
        self.redis.delete(_key(identifier), _beat_key(identifier), _awake_key(identifier))
        self.redis.srem(OPEN, identifier)
        self.storage.delete_prefix(upload_prefix(identifier))

    def step(self, ticket: Ticket) -> None:
        """Say that the inspector has come further: what it does next has a time of its own."""
        pipe = self.redis.pipeline(transaction=True)
        pipe.incr(step_key(ticket.id))
        pipe.expire(step_key(ticket.id), TICKET_SECONDS)
        pipe.execute()

    @contextmanager
    def inspecting(self, ticket: Ticket, settings: Settings) -> Iterator[None]:
        """Hold a ticket as the inspector at work; a second thread says every few seconds that it still is."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(settings.heartbeat_seconds):
                # An outage as long as the lease ends the inspection; a shorter one does not.
                with suppress(Unavailable):
                    self.redis.set(_beat_key(ticket.id), 1, px=int(settings.lease_seconds * 1000))

        pipe = self.redis.pipeline(transaction=True)
        pipe.set(_beat_key(ticket.id), 1, px=int(settings.lease_seconds * 1000))
        pipe.set(
            _key(ticket.id), ticket.model_copy(update={"state": "inspecting"}).model_dump_json(), ex=TICKET_SECONDS
        )
        pipe.execute()
        thread = threading.Thread(target=beat, name=f"inspecting-{ticket.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def upload_prefix(identifier: str) -> str:
    """The folder in storage that holds an upload until its inspection ended."""
    return f"tmp/{identifier}"


def upload_key(identifier: str) -> str:
    """The uploaded file: a teacher's weights, or the image to be classified."""
    return f"{upload_prefix(identifier)}/{'image' if identifier.startswith('prd-') else 'weights.safetensors'}"


def _key(identifier: str) -> str:
    return f"dearkd:inspection:{identifier}"


def _beat_key(identifier: str) -> str:
    return f"{_key(identifier)}:beat"


def _awake_key(identifier: str) -> str:
    return f"{_key(identifier)}:awake"


def uploaded_bytes(redis: Redis, identifier: str) -> int:
    """The size of the file that a ticket is for, or of the weights that it needs; 0 where there is none."""
    text = cast("bytes | None", redis.get(_key(identifier)))
    return 0 if text is None else int(Ticket.model_validate_json(text).request.get("bytes", 0))


def too_large_to_inspect(ticket: Ticket, cause: str) -> InvalidInput:
    """The answer to what asks for more memory or time than an inspection may take."""
    questions = {"chk": "/dataset", "prd": ""}
    pointer = "/prefix" if "prefix" in ticket.request else questions.get(ticket.id.partition("-")[0], "/weights")
    return InvalidInput.at(
        pointer,
        f"{cause}: use something smaller, or let the server allow more (DEARKD_INSPECT_MEMORY_BYTES, "
        "DEARKD_INSPECT_TIMEOUT_SECONDS)",
        code="too_large_to_inspect",
    )


def _refusal_of(ticket: Ticket, death: InspectorDeath) -> DearKDError:
    cause = f"the inspector {death.cause}"
    if death.too_large:
        return too_large_to_inspect(ticket, cause)
    return Unavailable(f"{cause}: try again; if that ends alike, mend its installation", code="worker_died")
