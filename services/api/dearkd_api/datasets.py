"""Datasets: made by synthesis jobs, or registered."""

import json
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from dearkd.answers import RegisteredDataset, Registering, StoredPage
from dearkd.data.feature_maps import FEATURE_MAP
from dearkd.data.manifests import DatasetManifest
from dearkd.data.unregistered import listed_shards
from dearkd.documents import Unread
from dearkd.errors import Conflict, InvalidInput, NotFound
from dearkd.identifiers import is_id, sibling
from dearkd.jobs.idempotency import Turn
from dearkd.jobs.inspections import Ticket
from dearkd.specs.requests import DatasetRegistration
from dearkd.storage.catalog import StoredFile
from dearkd.storage.keys import check_key
from dearkd_api import registering
from dearkd_api.access import Asking, Caller, Viewer
from dearkd_api.backend import Backend, Uses
from dearkd_api.bodies import JsonRoute, ThisTurn
from dearkd_api.files import FILE, send_verified
from dearkd_api.idempotency import IdempotencyKey
from dearkd_api.pages import DEFAULT_LIMIT, After, Limit, require_id, stored_page
from dearkd_api.verification import ServedFile

BESIDE_SHARDS = ("_info.json", "preview.png", "README.md", "timelapse.webp", FEATURE_MAP, "class_names.json")
RESERVED = ("teachers", "models", "runs", "jobs", "tmp", "keys", "audit")

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=JsonRoute)


class DatasetPage(StoredPage[RegisteredDataset]):
    pass


@router.post("", status_code=201, response_model=RegisteredDataset, responses={202: {"model": Registering}})
async def create(
    posted: DatasetRegistration,
    request: Request,
    backend: Uses,
    caller: Caller,
    turn: ThisTurn,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Register the shards under `prefix`, after reading and checking all of them.

    The shards are those that `_info.json` names, else every `*.tar`. `class_names.json`, a JSON list, names the classes
    if it exists; else they are named by their numbers. A prefix `datasets/{id}` gives the dataset that id; any other
    may be registered again, as another dataset with the shards that it holds then.
    """
    identifier = await run_in_threadpool(_open, posted, backend, caller, turn)
    return await registering.answer(request, backend, backend.datasets, identifier)


@router.get("", response_model=DatasetPage)
def list_newest_first(backend: Uses, viewer: Viewer, limit: Limit = DEFAULT_LIMIT, after: After = None) -> Response:
    unread: list[Unread] = []
    after = require_id(after, "ds")
    found, more = backend.datasets.page(limit=limit, after=after, viewer=viewer, unread=unread)
    return JSONResponse(stored_page([registering.render(backend.datasets, dataset) for dataset in found], more, unread))


@router.get("/{identifier}", response_model=RegisteredDataset | Registering)
def get(identifier: str, backend: Uses, viewer: Viewer) -> Response:
    """The manifest; `status` is `registering` or `failed` while or after the inspector checks it."""
    return JSONResponse(registering.look_up(backend, backend.datasets, identifier, viewer))


@router.delete("/{identifier}", status_code=204)
def delete(identifier: str, backend: Uses, identity: Asking) -> None:
    """Delete a dataset: its manifest, then everything under `datasets/{id}`. If there are keys, its owner alone or an
    administrator may (else 403). 409 while a job uses it.

    The shards of a dataset that was registered from another prefix stay.
    """
    registering.remove(backend, backend.datasets, identifier, identity)


@router.head("/{identifier}/files/{name:path}", include_in_schema=False)
@router.get("/{identifier}/files/{name:path}", response_class=Response, responses=FILE)
async def get_file(identifier: str, name: str, request: Request, backend: Uses, viewer: Viewer) -> Response:
    """A shard, `_info.json`, `preview.png`, `timelapse.webp`, `feature_map.json`, `README.md` or `dataset.json`.

    The last takes no ranges.

    500 `corrupt_data` if a shard was altered in storage.
    """
    dataset = await run_in_threadpool(partial(backend.datasets.get, identifier, viewer=viewer))
    if name == backend.datasets.manifest:
        # Not the stored one, which says whose it is.
        shown = json.dumps(dataset.model_dump(mode="json", exclude={"owner"}), indent=2)
        return Response(shown + "\n", media_type="application/json")
    return await send_verified(request, backend, await run_in_threadpool(_find_file, dataset, name, backend))


def _find_file(dataset: DatasetManifest, name: str, backend: Backend) -> ServedFile:
    for shard in dataset.shards:
        if shard.name == name:
            listed = StoredFile(name=name, bytes=shard.bytes, sha256=shard.sha256)
            return ServedFile(f"{dataset.prefix}/{name}", listed)
    if name in BESIDE_SHARDS:
        for key in (f"datasets/{dataset.id}/{name}", f"{dataset.prefix}/{name}"):
            if backend.storage.exists(key):
                return ServedFile(key)
    raise NotFound(f"{dataset.id} has no file {name!r}: there are its shards and {', '.join(BESIDE_SHARDS[:5])}")


def _open(posted: DatasetRegistration, backend: Backend, caller: str | None, turn: Turn) -> str:
    """Check what can be checked at once, leave the rest to the inspector; returns the id that the dataset will have."""
    prefix = check_key(posted.prefix, pointer="/prefix")
    identifier = _identifier(prefix, backend, turn)
    if turn.state == "again" and registering.is_known(backend, backend.datasets, identifier):
        return identifier
    listed_shards(backend.storage, prefix)
    backend.inspections.require_inspector()
    backend.store.withdraw_deletion(identifier)  # one of that id may have been deleted a moment ago
    request = {"prefix": prefix, "name": posted.name, "class_order": posted.class_order}
    backend.inspections.open(Ticket(id=identifier, request=request, owner=caller))
    return identifier


def _identifier(prefix: str, backend: Backend, turn: Turn) -> str:
    first, *rest = prefix.split("/")
    if first in RESERVED:
        raise InvalidInput.at("/prefix", f"{prefix!r} lies under {first}/, which dearkd keeps for itself")
    if first != "datasets":
        return sibling(turn.identifier, "ds")
    if not rest or (is_id(rest[0], "ds") and len(rest) > 1):
        raise InvalidInput.at("/prefix", f"{prefix!r} is not the folder of one dataset")
    if not is_id(rest[0], "ds"):
        return sibling(turn.identifier, "ds")
    identifier = rest[0]
    if turn.state != "again" and backend.datasets.exists(identifier):
        raise Conflict(f"{identifier} is registered already", code="already_registered")
    maker = sibling(identifier, "syn")
    if backend.storage.exists(f"jobs/{maker}/job.json"):
        raise Conflict(f"{prefix} belongs to the synthesis job {maker}, which registers it when it is done")
    return identifier
