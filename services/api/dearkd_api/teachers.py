"""Teachers: uploaded as a stream, checked here as far as possible without torch, then by the inspector."""

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from dearkd.answers import RegisteredTeacher, Registering, StoredPage
from dearkd.data.unregistered import keys_under
from dearkd.documents import Unread
from dearkd.errors import InvalidInput
from dearkd.identifiers import new_id, sibling
from dearkd.jobs.idempotency import Turn
from dearkd.jobs.inspections import Ticket, upload_key, upload_prefix
from dearkd.specs import TeacherSpec
from dearkd.specs.requests import TeacherRegistration
from dearkd.storage.keys import check_key
from dearkd_api import registering
from dearkd_api.access import Asking, Caller, Viewer
from dearkd_api.backend import Backend, Uses
from dearkd_api.bodies import ErrorCollector, JsonRequest, parse_json
from dearkd_api.idempotency import IdempotencyKey, answer_once, fingerprint_of
from dearkd_api.keys import Identity
from dearkd_api.multipart import parts
from dearkd_api.pages import DEFAULT_LIMIT, After, Limit, require_id, stored_page
from dearkd_api.uploads import Upload, upload_place
from dearkd_api.weights import check_safetensors

MAX_SPEC_BYTES = 2**20
SAFETENSORS = ".safetensors"

router = APIRouter(prefix="/v1/teachers", tags=["teachers"])

RESERVED = ("datasets", "teachers", "models", "runs", "jobs", "tmp", "keys", "audit")


_FORM = {
    "type": "object",
    "required": ["teacher", "weights"],
    "additionalProperties": False,
    "properties": {
        "teacher": TeacherSpec.model_json_schema(),
        "weights": {"type": "string", "format": "binary", "description": "A safetensors file."},
    },
}


class TeacherPage(StoredPage[RegisteredTeacher]):
    pass


@router.post(
    "",
    status_code=201,
    response_model=RegisteredTeacher,
    responses={202: {"model": Registering}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _FORM},
                "application/json": {"schema": TeacherRegistration.model_json_schema()},
            },
        }
    },
)
async def create(
    request: Request, backend: Uses, identity: Asking, caller: Caller, idempotency_key: IdempotencyKey = None
) -> Response:
    """Register a CNN: its description as JSON in `teacher`, its weights as safetensors in `weights`, in any order.

    Or, as a JSON body, the description with `prefix`: the key in storage of weights that lie there already.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        posted = await JsonRequest(request.scope, request.receive).json()
        return await answer_once(
            request, backend, fingerprint_of(request, posted), partial(_register, request, posted, backend, caller)
        )
    upload = Upload(request, backend)
    await upload.begin()
    async with upload_place(backend):
        received = await anyio.to_thread.run_sync(
            _receive, request, upload, backend, caller, limiter=backend.upload_limiter
        )
    # A form's own bytes would not do: its boundary is another each time.
    content = {name: received.request[name] for name in ("spec", "sha256")}
    taken: list[str] = []
    try:
        return await answer_once(
            request,
            backend,
            fingerprint_of(request, content),
            partial(_inspect, request, received, backend, identity, taken),
            identifier=received.id,
        )
    finally:
        if received.id not in taken:
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(backend.storage.delete_prefix, upload_prefix(received.id))


async def _register(request: Request, posted: Any, backend: Backend, caller: str | None, turn: Turn) -> Response:
    identifier = sibling(turn.identifier, "tch")
    if turn.state == "new" or not await run_in_threadpool(registering.is_known, backend, backend.teachers, identifier):
        await run_in_threadpool(_open, posted, backend, identifier, caller)
    return await registering.answer(request, backend, backend.teachers, identifier)


async def _inspect(
    request: Request, received: Ticket, backend: Backend, identity: Identity | None, taken: list[str], turn: Turn
) -> Response:
    """Hand an upload to the inspector, under the id that is settled for it, which is then in `taken`."""
    ticket = received.model_copy(update={"id": sibling(turn.identifier, "tch")})

    def hand_over() -> None:
        if turn.state == "again" and registering.is_known(backend, backend.teachers, ticket.id):
            return
        try:
            if ticket.id != received.id:
                backend.storage.copy(upload_key(received.id), upload_key(ticket.id))
            size = ticket.request["bytes"]
            with backend.quotas.charged(ticket.owner, identity.quotas if identity else None, size=size):
                backend.inspections.open(ticket)
        except BaseException:
            backend.storage.delete_prefix(upload_prefix(ticket.id))
            raise
        taken.append(ticket.id)

    await run_in_threadpool(hand_over)
    return await registering.answer(request, backend, backend.teachers, ticket.id)


@router.get("", response_model=TeacherPage)
def list_newest_first(backend: Uses, viewer: Viewer, limit: Limit = DEFAULT_LIMIT, after: After = None) -> Response:
    unread: list[Unread] = []
    after = require_id(after, "tch")
    found, more = backend.teachers.page(limit=limit, after=after, viewer=viewer, unread=unread)
    return JSONResponse(stored_page([registering.render(backend.teachers, teacher) for teacher in found], more, unread))


@router.get("/{identifier}", response_model=RegisteredTeacher | Registering)
def get(identifier: str, backend: Uses, viewer: Viewer) -> Response:
    """A teacher; `status` is `registering` or `failed` (with `error`) while or after the inspector checks it."""
    return JSONResponse(registering.look_up(backend, backend.teachers, identifier, viewer))


@router.delete("/{identifier}", status_code=204)
def delete(identifier: str, backend: Uses, identity: Asking) -> None:
    """Delete a teacher; what was made with it stays. If there are keys, its owner alone or an administrator may (else
    403). 409 while a job uses it."""
    registering.remove(backend, backend.teachers, identifier, identity)


class _Weights:
    """Counts and hashes what streams through it."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.sha256()

    def through(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.size += len(chunk)
            self._digest.update(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _open(posted: Any, backend: Backend, identifier: str, caller: str | None) -> None:
    """Check what can be checked at once of weights in storage, leave the rest to the inspector."""
    if isinstance(posted, dict) and "prefix" not in posted:
        raise InvalidInput.at(
            "/prefix",
            "required, but missing: give the key of weights that lie in storage, or upload them as multipart/form-data "
            "with the parts teacher and weights",
        )
    registration = TeacherRegistration.check(posted)
    spec = TeacherSpec.check(registration.model_dump(exclude={"prefix"}))
    _check_size(spec, backend.settings.max_image_size)
    key = _find_weights(check_key(registration.prefix, pointer="/prefix"), backend)
    try:
        check_safetensors(backend.storage, key, backend.storage.size(key))
    except InvalidInput as error:
        raise InvalidInput.at("/prefix", f"{key}: {error.errors[0].detail}") from None
    backend.inspections.require_inspector()
    request = {"spec": spec.model_dump(mode="json"), "weights": key}
    backend.inspections.open(Ticket(id=identifier, request=request, owner=caller))


def _find_weights(prefix: str, backend: Backend) -> str:
    first = prefix.partition("/")[0]
    if first in RESERVED:
        raise InvalidInput.at("/prefix", f"{prefix!r} lies under {first}/, which dearkd keeps for itself")
    if prefix.endswith(SAFETENSORS) and backend.storage.exists(prefix):
        return prefix
    found = [key for key in keys_under(backend.storage, prefix) if key.endswith(SAFETENSORS)]
    if len(found) != 1:
        names = ", ".join(sorted(found)[:3])
        raise InvalidInput.at(
            "/prefix",
            f"there are {len(found)} files *{SAFETENSORS} under {prefix!r} in storage ({names}): give the key of one"
            if found
            else f"there is no file *{SAFETENSORS} at or under {prefix!r} in storage",
            code="no_weights",
        )
    return found[0]


def _receive(request: Request, upload: Upload, backend: Backend, caller: str | None) -> Ticket:
    """Store an upload and check what can be checked here; if anything goes wrong, nothing of it stays."""
    identifier = new_id("tch")
    try:
        posted: bytes | None = None
        weights: _Weights | None = None
        for part in parts(request.headers.get("content-type", ""), upload.chunks()):
            if part.name == "teacher" and posted is None:
                posted = part.read(MAX_SPEC_BYTES)
            elif part.name == "weights" and weights is None:
                weights = _Weights()
                backend.storage.put(upload_key(identifier), weights.through(part.chunks))
            else:
                twice = part.name in ("teacher", "weights")
                raise InvalidInput.at(
                    f"/{part.name}",
                    "sent twice; send it once" if twice else "unknown part; there are teacher and weights",
                )
        spec, weights = _check(backend, identifier, posted, weights)
        backend.inspections.require_inspector()
        request_to_inspector = {"spec": spec.model_dump(mode="json"), "sha256": weights.sha256, "bytes": weights.size}
        return Ticket(id=identifier, request=request_to_inspector, owner=caller)
    except BaseException:
        backend.storage.delete_prefix(upload_prefix(identifier))
        raise


def _check(
    backend: Backend, identifier: str, posted: bytes | None, weights: _Weights | None
) -> tuple[TeacherSpec, _Weights]:
    errors = ErrorCollector()
    spec = None
    with errors:
        spec = _spec(posted, backend.settings.max_image_size)
    with errors:
        if weights is None:
            raise InvalidInput.at("/weights", "the part is missing: send the weights as safetensors")
        check_safetensors(backend.storage, upload_key(identifier), weights.size)
    errors.raise_if_any()
    assert spec is not None
    assert weights is not None
    return spec, weights


def _spec(posted: bytes | None, max_image_size: int) -> TeacherSpec:
    if posted is None:
        raise InvalidInput.at("/teacher", "the part is missing: send the teacher's description as JSON")
    value: Any = parse_json(posted, pointer="/teacher")
    if not isinstance(value, dict):
        raise InvalidInput.at("/teacher", f"expected a JSON object, got {type(value).__name__}")
    spec = TeacherSpec.check(value)
    _check_size(spec, max_image_size)
    return spec


def _check_size(spec: TeacherSpec, max_image_size: int) -> None:
    if spec.image_size > max_image_size:
        raise InvalidInput.at("/image_size", f"{spec.image_size} pixels; this server allows {max_image_size}")
