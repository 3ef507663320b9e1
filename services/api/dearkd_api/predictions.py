"""Predictions of a model for one image, which the inspector answers."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from dearkd.answers import Prediction
from dearkd.data.tar_members import MAX_MEMBER_BYTES
from dearkd.errors import InvalidInput, Unavailable
from dearkd.identifiers import new_id
from dearkd.jobs.inspections import Ticket, upload_key, upload_prefix
from dearkd.storage.catalog import Model
from dearkd_api.access import Caller, Viewer
from dearkd_api.backend import Backend, Uses
from dearkd_api.registering import closed_ticket
from dearkd_api.uploads import Upload, upload_place

CONTENT_TYPES = ("image/", "application/octet-stream")

router = APIRouter(prefix="/v1/models", tags=["models"])


_IMAGE = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "/{identifier}/predict",
    response_model=Prediction,
    openapi_extra={"requestBody": {"required": True, "content": {"image/*": _IMAGE, CONTENT_TYPES[1]: _IMAGE}}},
)
async def predict(
    identifier: str, request: Request, backend: Uses, caller: Caller, viewer: Viewer, attention: bool = False
) -> Response:
    """Classify an image, which is the body as it is: PNG, WebP, JPEG or another format that datasets are made of.

    With `attention=true` also where the student looked.

    503 `inspector_unavailable` where no synth worker is alive, `inspector_busy` where it has not come to it in time.
    """
    model = await run_in_threadpool(partial(backend.models.get, identifier, viewer=viewer))
    await run_in_threadpool(backend.inspections.require_inspector)
    upload = Upload(request, backend, max_bytes=MAX_MEMBER_BYTES)
    await upload.begin()
    ticket = _ticket(model, caller, attention=attention)
    async with upload_place(backend):
        await anyio.to_thread.run_sync(_receive, upload.chunks(), ticket, backend, limiter=backend.upload_limiter)
    return JSONResponse(await _answer(request, backend, ticket))


async def predict_image(
    model: Model, image: Iterator[bytes], request: Request, backend: Backend, caller: str | None
) -> dict[str, Any]:
    """The answers of a model and its teacher to an image that has come already, with attention; raises as the route."""
    await run_in_threadpool(backend.inspections.require_inspector)
    ticket = _ticket(model, caller, attention=True)
    await run_in_threadpool(_receive, image, ticket, backend)
    return await _answer(request, backend, ticket)


async def _answer(request: Request, backend: Backend, ticket: Ticket) -> dict[str, Any]:
    """Wait for what the inspector says, and forget the question."""
    try:
        closed = await closed_ticket(request, backend, ticket.id)
    finally:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(backend.inspections.forget, ticket.id)
    if closed is not None and closed.refusal is not None:
        raise closed.refusal.error
    if closed is None or closed.result is None:
        raise Unavailable(
            f"the inspector has not come to this within {backend.settings.inspect_seconds:g} s: try again later",
            code="inspector_busy",
        )
    return closed.result


def _ticket(model: Model, caller: str | None, *, attention: bool) -> Ticket:
    request: dict[str, Any] = {"model": model.id, "bytes": _weights_bytes(model)}
    if attention:
        request["attention"] = True
    return Ticket(id=new_id("prd"), request=request, owner=caller)


def _receive(chunks: Iterator[bytes], ticket: Ticket, backend: Backend) -> None:
    """Store the image and hand it to the inspector; if anything goes wrong, nothing of it stays."""
    try:
        key = upload_key(ticket.id)
        backend.storage.put(key, chunks)
        if not backend.storage.size(key):
            raise InvalidInput.at("", "the body is empty: send the bytes of an image file", code="no_image")
        backend.inspections.open(ticket)
    except BaseException:
        backend.storage.delete_prefix(upload_prefix(ticket.id))
        raise


def _weights_bytes(model: Model) -> int:
    return sum(file.bytes for file in model.files if file.name == "model.safetensors")
