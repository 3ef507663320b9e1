"""What teachers and datasets have in common while the inspector looks at them, and when they go."""

import asyncio
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from dearkd.errors import Conflict, NotFound
from dearkd.identifiers import is_id
from dearkd.jobs import Job, Kind
from dearkd.registration import Ticket
from dearkd.resources import Manifest, ManifestT, Shelf
from dearkd.store import JobStore, dataset_of, model_of
from dearkd_api.backend import Backend

POLL_SECONDS = 0.1


def render(manifest: Manifest) -> dict[str, Any]:
    return {"status": "ready"} | manifest.model_dump(mode="json")


async def answer(request: Request, backend: Backend, shelf: Shelf[ManifestT], identifier: str) -> Response:
    """Wait for the inspector: 201 with what it registered, its refusal, or 202 if it takes longer."""
    headers = {"Location": f"/v1/{shelf.root}/{identifier}"}
    until = asyncio.get_running_loop().time() + backend.settings.inspect_seconds
    while True:
        ticket = await run_in_threadpool(backend.registrations.get, identifier)
        if ticket is None or ticket.state == "ready":
            manifest = await run_in_threadpool(shelf.get, identifier)
            return JSONResponse(render(manifest), status_code=201, headers=headers)
        if ticket.refusal is not None:
            raise ticket.refusal.error
        over = asyncio.get_running_loop().time() > until
        if over or backend.stopping.is_set() or await request.is_disconnected():
            return JSONResponse(_render_ticket(ticket), status_code=202, headers=headers)
        await asyncio.sleep(POLL_SECONDS)


def look_up(backend: Backend, shelf: Shelf[ManifestT], identifier: str) -> dict[str, Any]:
    """The manifest, or how far the registration is. Raises `NotFound`."""
    try:
        return render(shelf.get(identifier))
    except NotFound:
        ticket = backend.registrations.get(identifier) if is_id(identifier, shelf.kind) else None
        if ticket is None or ticket.state == "ready":
            raise
        return _render_ticket(ticket)


def remove(backend: Backend, shelf: Shelf[ManifestT], identifier: str) -> None:
    """Delete a resource.

    Raises:
        NotFound: if there is none.
        Conflict: `in_use`, while a job that has not ended refers to it, or it is being registered.
    """
    if is_id(identifier, shelf.kind):
        ticket = backend.registrations.get(identifier)
        if ticket is not None and ticket.registering:
            raise Conflict(f"{identifier} is being registered: wait until that has ended", code="in_use")
    shelf.get(identifier)
    _require_unused(backend.store, identifier)
    shelf.delete(identifier)


def _render_ticket(ticket: Ticket) -> dict[str, Any]:
    if ticket.refusal is None:
        return {"id": ticket.id, "status": "registering"}
    error = ticket.refusal.error
    return {
        "id": ticket.id,
        "status": "failed",
        "error": {
            "code": error.code,
            "message": error.message,
            "retryable": error.retryable,
            "errors": [{"pointer": e.pointer, "detail": e.detail} for e in error.errors],
        },
    }


def _require_unused(store: JobStore, identifier: str) -> None:
    kinds: tuple[Kind, ...] = ("synthesis", "training")
    for kind in kinds:
        for job in store.active(kind):
            if identifier in _references(job):
                raise Conflict(
                    f"{identifier} is used by {job.id}, which is {job.status}: cancel that first, or let it end",
                    code="in_use",
                )


def _references(job: Job) -> set[str]:
    """All that a job reads or is making."""
    named = {job.spec.get(field) for field in ("teacher", "dataset", "eval_dataset", "adaptive_student", "init")}
    made = dataset_of(job.id) if job.kind == "synthesis" else model_of(job.id)
    return (
        {made} | {text for text in named if text} | {dataset_of(text) for text in named if text and is_id(text, "syn")}
    )
