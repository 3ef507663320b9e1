"""Checks of a teacher on a registered dataset: asked for here, answered by the inspector, kept for a week."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from fastapi.responses import JSONResponse

from dearkd.answers import Check
from dearkd.errors import InvalidInput, NotFound
from dearkd.identifiers import is_id, sibling
from dearkd.jobs.inspections import Ticket
from dearkd.specs.requests import CheckRequest
from dearkd.storage.catalog import Teacher
from dearkd_api.access import Caller, Viewer
from dearkd_api.backend import Backend, Uses
from dearkd_api.bodies import ErrorCollector, JsonRoute, Posted, ThisTurn
from dearkd_api.idempotency import IdempotencyKey
from dearkd_api.registering import error_of
from dearkd_api.submissions import find

router = APIRouter(prefix="/v1/teachers", tags=["teachers"], route_class=JsonRoute)

STATUS = {"waiting": "queued", "inspecting": "running", "ready": "succeeded", "failed": "failed"}


@router.post("/{identifier}/checks", status_code=202, response_model=Check)
def create(
    identifier: str,
    posted: Annotated[Posted[CheckRequest], Body()],
    backend: Uses,
    caller: Caller,
    viewer: Viewer,
    turn: ThisTurn,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Try a teacher on real images, before hours are spent on what it says: accuracy, calibration, and what would
    explain a low figure. 503 `inspector_unavailable` where no synth worker is alive."""
    teacher = backend.teachers.get(identifier, viewer=viewer)
    errors = ErrorCollector(posted.refusal)
    with errors:
        _require_same_classes(posted.request.dataset, teacher, backend, viewer)
    errors.raise_if_any()
    backend.inspections.require_inspector()
    request = posted.request.model_dump() | {"teacher": teacher.id, "bytes": teacher.bytes}
    ticket = Ticket(id=sibling(turn.identifier, "chk"), request=request, owner=caller)
    standing = backend.inspections.get(ticket.id) if turn.state == "again" else None
    if standing is None:
        backend.inspections.open(ticket)
    place = f"/v1/teachers/{teacher.id}/checks/{ticket.id}"
    return JSONResponse(_render(standing or ticket), status_code=202, headers={"Location": place})


@router.get("/{identifier}/checks/{check}", response_model=Check)
def get(identifier: str, check: str, backend: Uses, caller: Caller) -> Response:
    """A check, for a week after it ended; if there are keys, only for the key that asked for it."""
    ticket = backend.inspections.get(check) if is_id(check, "chk") else None
    if ticket is None or ticket.request["teacher"] != identifier or caller not in (None, ticket.owner):
        raise NotFound(f"there is no check {check!r:.80} of {identifier!r:.80}: it is kept for a week after it ended")
    return JSONResponse(_render(ticket))


def _require_same_classes(reference: str | None, teacher: Teacher, backend: Backend, viewer: str | None) -> None:
    dataset = find(reference, "/dataset", backend.datasets, viewer)
    if dataset is not None and dataset.num_classes != teacher.num_classes:
        raise InvalidInput.at(
            "/dataset",
            f"{dataset.id} has {dataset.num_classes} classes, the teacher {teacher.num_classes}; if only some of them "
            "occur in it, register it again with a class_names.json that names all",
        )


def _render(ticket: Ticket) -> dict[str, Any]:
    body = {
        "id": ticket.id,
        "teacher": ticket.request["teacher"],
        "dataset": ticket.request["dataset"],
        "status": STATUS[ticket.state],
        "created_at": ticket.created_at.isoformat().replace("+00:00", "Z"),
        "error": error_of(ticket),
    }
    return body | (ticket.result or {})
