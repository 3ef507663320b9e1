"""Models: trained students."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from dearkd.answers import StoredPage, TrainedModel
from dearkd.documents import Unread
from dearkd.errors import NotFound
from dearkd_api import registering
from dearkd_api.access import Asking, Viewer
from dearkd_api.backend import Backend, Uses
from dearkd_api.files import FILE, send_verified
from dearkd_api.pages import DEFAULT_LIMIT, After, Limit, require_id, stored_page
from dearkd_api.verification import ServedFile

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelPage(StoredPage[TrainedModel]):
    pass


@router.get("", response_model=ModelPage)
def list_newest_first(backend: Uses, viewer: Viewer, limit: Limit = DEFAULT_LIMIT, after: After = None) -> Response:
    unread: list[Unread] = []
    after = require_id(after, "mdl")
    found, more = backend.models.page(limit=limit, after=after, viewer=viewer, unread=unread)
    return JSONResponse(stored_page([registering.render(backend.models, model) for model in found], more, unread))


@router.get("/{identifier}", response_model=TrainedModel)
def get(identifier: str, backend: Uses, viewer: Viewer) -> Response:
    """A model; `accuracy` is the last checkpoint's, null if nothing was evaluated."""
    return JSONResponse(registering.render(backend.models, backend.models.get(identifier, viewer=viewer)))


@router.delete("/{identifier}", status_code=204)
def delete(identifier: str, backend: Uses, identity: Asking) -> None:
    """Delete a model: its manifest, then its files. If there are keys, its owner alone or an administrator may (else
    403). 409 while a job uses it."""
    registering.remove(backend, backend.models, identifier, identity)


@router.head("/{identifier}/files/{name:path}", include_in_schema=False)
@router.get("/{identifier}/files/{name:path}", response_class=Response, responses=FILE)
async def get_file(identifier: str, name: str, request: Request, backend: Uses, viewer: Viewer) -> Response:
    """A file from the model's list `files`; takes ranges. 500 `corrupt_data` if it was altered."""
    file = await run_in_threadpool(_find_file, identifier, name, backend, viewer)
    return await send_verified(request, backend, file)


def _find_file(identifier: str, name: str, backend: Backend, viewer: str | None) -> ServedFile:
    model = backend.models.get(identifier, viewer=viewer)
    for file in model.files:
        if file.name == name:
            return ServedFile(backend.models.key(identifier, name), file)
    raise NotFound(f"{identifier} has no file {name!r}: there are {', '.join(file.name for file in model.files)}")
