"""Teachers, datasets and models that their owners let other keys see, and use."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from dearkd.answers import RegisteredDataset, RegisteredTeacher, TrainedModel
from dearkd_api import registering
from dearkd_api.access import Asking
from dearkd_api.backend import Backend, Uses
from dearkd_api.keys import Identity


def _router(collection: str, model: type[BaseModel]) -> APIRouter:
    """The routes of one sort of resources."""
    router = APIRouter(prefix=f"/v1/{collection}", tags=[collection])

    @router.post("/{identifier}/share", response_model=model)
    def share(identifier: str, backend: Uses, identity: Asking) -> Response:
        """Let every key see and use it. Its owner alone or an administrator may (else 403), and delete it."""
        return JSONResponse(_set(collection, identifier, backend, identity, shared=True))

    @router.post("/{identifier}/unshare", response_model=model)
    def unshare(identifier: str, backend: Uses, identity: Asking) -> Response:
        """Let no other key see it any more. Jobs of others that use it already go on."""
        return JSONResponse(_set(collection, identifier, backend, identity, shared=False))

    return router


def _set(
    collection: str, identifier: str, backend: Backend, identity: Identity | None, *, shared: bool
) -> dict[str, Any]:
    catalog: Any = getattr(backend, collection)
    registering.require_own(catalog, identifier, identity, "share" if shared else "unshare")
    catalog.share(identifier, shared=shared)
    return registering.render(catalog, catalog.get(identifier))


routers = [
    _router("teachers", RegisteredTeacher),
    _router("datasets", RegisteredDataset),
    _router("models", TrainedModel),
]
