"""Registration and deletion, as far as they are the same for teachers and datasets."""

import asyncio
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from dearkd.choices import Kind
from dearkd.errors import Conflict, Forbidden, NewerSchema, NotFound, Unreadable
from dearkd.identifiers import is_id
from dearkd.jobs.inspections import Ticket
from dearkd.jobs.references import uses
from dearkd.jobs.store import JobStore
from dearkd.storage.catalog import Catalog, ManifestT
from dearkd_api.backend import Backend
from dearkd_api.keys import Identity

POLL_SECONDS = 0.1


def render(catalog: Catalog[ManifestT], manifest: ManifestT) -> dict[str, Any]:
    """A resource as the API shows it."""
    status = {} if catalog.kind == "mdl" else {"status": "ready"}
    shared = manifest.owner is None or catalog.is_shared(manifest.id)
    return status | manifest.model_dump(mode="json", exclude={"owner", "schema_version"}) | {"shared": shared}


async def answer(request: Request, backend: Backend, catalog: Catalog[ManifestT], identifier: str) -> Response:
    """Wait for the inspector: 201 with what it registered, its refusal, or 202 if it takes longer."""
    headers = {"Location": f"/v1/{catalog.root}/{identifier}"}
    ticket = await closed_ticket(request, backend, identifier)
    if ticket is None or ticket.state == "ready":
        manifest = await run_in_threadpool(catalog.get, identifier)
        body = await run_in_threadpool(render, catalog, manifest)
        return JSONResponse(body, status_code=201, headers=headers)
    if ticket.refusal is not None:
        raise ticket.refusal.error
    return JSONResponse(_render_ticket(ticket), status_code=202, headers=headers)


async def closed_ticket(request: Request, backend: Backend, identifier: str) -> Ticket | None:
    """The ticket once it is closed; as it is where that takes longer than a request waits; None if there is none."""
    until = asyncio.get_running_loop().time() + backend.settings.inspect_seconds
    while True:
        ticket = await run_in_threadpool(backend.inspections.get, identifier)
        if ticket is None or not ticket.under_way:
            return ticket
        over = asyncio.get_running_loop().time() > until
        if over or backend.stopping.is_set() or await request.is_disconnected():
            return ticket
        await asyncio.sleep(POLL_SECONDS)


def is_known(backend: Backend, catalog: Catalog[ManifestT], identifier: str) -> bool:
    """Tell whether a resource is there, or on its way: a registration that has failed is none."""
    if catalog.exists(identifier):
        return True
    ticket = backend.inspections.get(identifier)
    return ticket is not None and ticket.refusal is None


def look_up(backend: Backend, catalog: Catalog[ManifestT], identifier: str, viewer: str | None) -> dict[str, Any]:
    """The manifest, or the state of its registration. Raises `NotFound` if there is neither that `viewer` may see."""
    try:
        return render(catalog, catalog.get(identifier, viewer=viewer))
    except NotFound:
        ticket = backend.inspections.get(identifier) if is_id(identifier, catalog.kind) else None
        if ticket is None or ticket.state == "ready" or viewer not in (None, ticket.owner):
            raise
        return _render_ticket(ticket)


def remove(backend: Backend, catalog: Catalog[ManifestT], identifier: str, identity: Identity | None) -> None:
    """Delete a resource, also one whose manifest cannot be read.

    Args:
        backend: holds it.
        catalog: teachers, datasets or models.
        identifier: of the resource.
        identity: the key that asks; None if there are no keys: then anybody may delete.

    Raises:
        NotFound: if there is none.
        Forbidden: if it is another key's, or nobody's, and the caller is no administrator.
        Conflict: `in_use`, while a job that has not ended refers to it, or it is being registered.
    """
    if is_id(identifier, catalog.kind):
        ticket = backend.inspections.get(identifier)
        if ticket is not None and ticket.under_way:
            raise Conflict(f"{identifier} is being registered: wait until that has ended", code="in_use")
    require_own(catalog, identifier, identity, "delete")
    # From here on no job on it is accepted, so that one which is being posted is either seen now or refused.
    backend.store.announce_deletion(identifier)
    try:
        _require_unused(backend.store, identifier)
    except BaseException:
        backend.store.withdraw_deletion(identifier)
        raise
    catalog.delete(identifier)


def require_own(catalog: Catalog[ManifestT], identifier: str, identity: Identity | None, verb: str) -> None:
    """Refuse who is neither the owner of a resource nor an administrator.

    Raises:
        NotFound: if there is none.
        Forbidden: if it is another key's, or nobody's. So is what he may not see: its id is hard enough to guess.
        NewerSchema: if a newer version wrote it.
    """
    try:
        owner = catalog.get(identifier).owner
    except NewerSchema:
        raise  # nobody here knows whose it is, nor what belongs to it
    except Unreadable:
        owner = None
    if identity is not None and identity.owner != owner and not identity.is_admin:
        whose = "belongs to another key" if owner else "has no owner"
        raise Forbidden(f"{identifier} {whose}: only its owner and a key with the scope admin may {verb} it")


def _render_ticket(ticket: Ticket) -> dict[str, Any]:
    error = error_of(ticket)
    if error is None:
        return {"id": ticket.id, "status": "registering"}
    return {"id": ticket.id, "status": "failed", "error": error}


def error_of(ticket: Ticket) -> dict[str, Any] | None:
    """The reason why an inspection failed; None where it has not."""
    if ticket.refusal is None:
        return None
    error = ticket.refusal.error
    return {
        "code": error.code,
        "message": error.message,
        "retryable": error.retryable,
        "errors": [{"pointer": e.pointer, "detail": e.detail} for e in error.errors],
    }


def _require_unused(store: JobStore, identifier: str) -> None:
    kinds: tuple[Kind, ...] = ("synthesis", "training")
    for kind in kinds:
        for job in store.active(kind):
            if identifier in uses(job):
                raise Conflict(
                    f"{identifier} is used by {job.id}, which is {job.status}: cancel that first, or let it end",
                    code="in_use",
                )
