"""Checkpoints of training runs: what a run keeps while it goes on, and their files."""

import re
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from dearkd.answers import Checkpoint, Page
from dearkd.errors import InvalidInput, NotFound
from dearkd.jobs.model import kind_of
from dearkd.storage.catalog import StoredFile
from dearkd.storage.checkpoints import CheckpointFile, checkpoint_key, read_pointer
from dearkd_api.access import Caller
from dearkd_api.backend import Backend, Uses
from dearkd_api.files import FILE, send_verified
from dearkd_api.pages import CHECKPOINT_ID, DEFAULT_LIMIT, After, Limit, page
from dearkd_api.verification import ServedFile

STORED: Final = "last.pt"
"""The name under which a trainer stores a checkpoint."""
SHOWN: Final = "checkpoint.pt"

router = APIRouter(prefix="/v1/training-runs", tags=["training-runs"])


class CheckpointPage(Page[Checkpoint]):
    pass


@router.get("/{identifier}/checkpoints", response_model=CheckpointPage)
def list_checkpoints(
    identifier: str, backend: Uses, caller: Caller, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Response:
    """List the checkpoints that the run keeps (`keep_checkpoints`), newest first; older ones are deleted."""
    kept = kept_of(identifier, backend, caller)
    if after is not None:
        if re.fullmatch(CHECKPOINT_ID, after) is None:
            raise InvalidInput.at(
                "/after", f"{after!r:.100} is no id of a checkpoint; give the last one that you received"
            )
        # Where that is gone by now, so are those that were older.
        place = next((place for place, file in enumerate(kept) if file.id == after), len(kept))
        kept = kept[place + 1 :]
    shown = [_shown(file).model_dump(mode="json") for file in kept[:limit]]
    return JSONResponse(page(shown, len(kept) > limit))


@router.head("/{identifier}/checkpoints/{checkpoint}/files/{name:path}", include_in_schema=False)
@router.get("/{identifier}/checkpoints/{checkpoint}/files/{name:path}", response_class=Response, responses=FILE)
async def get_file(
    identifier: str, checkpoint: str, name: str, request: Request, backend: Uses, caller: Caller
) -> Response:
    """A file of a checkpoint; takes ranges. `dearkd export` makes a model of it. 404 once newer ones took its place."""
    file = await run_in_threadpool(_find_file, identifier, checkpoint, name, backend, caller)
    try:
        return await send_verified(request, backend, file)
    except NotFound:
        raise _gone(identifier, checkpoint) from None


def kept_of(identifier: str, backend: Backend, caller: str | None) -> list[CheckpointFile]:
    """The checkpoints of a run that `caller` may see, newest first."""
    if kind_of(identifier) != "training":
        raise NotFound(f"there is no {identifier!r} in training-runs")
    backend.store.require_visible(identifier, caller)
    pointer = read_pointer(backend.storage, identifier)
    if pointer is None:
        backend.store.get(identifier, owner=caller)  # not found, or it has made none yet
        return []
    return pointer.named(STORED)


def _find_file(identifier: str, checkpoint: str, name: str, backend: Backend, caller: str | None) -> ServedFile:
    for file in kept_of(identifier, backend, caller):
        if file.id == checkpoint:
            if name != SHOWN:
                raise NotFound(f"{checkpoint} of {identifier} has no file {name!r:.100}: there is {SHOWN}")
            return ServedFile(checkpoint_key(identifier, file), _listed(file))
    raise _gone(identifier, checkpoint)


def _gone(identifier: str, checkpoint: str) -> NotFound:
    return NotFound(
        f"{identifier} keeps no checkpoint {checkpoint!r:.100}: newer ones take the place of older ones as it goes on "
        "(keep_checkpoints); list them again"
    )


def _listed(file: CheckpointFile) -> StoredFile:
    return StoredFile(name=SHOWN, bytes=file.bytes, sha256=file.sha256)


def _shown(file: CheckpointFile) -> Checkpoint:
    return Checkpoint(
        id=file.id,
        epoch=file.epoch,
        stage=file.stage,
        step=file.step,
        created_at=file.created_at,
        bytes=file.bytes,
        metrics=file.metrics,
        files=[_listed(file)],
    )
