"""The log of a job's webhook: what was told, what came of it, and telling it again."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from dearkd.answers import Page
from dearkd.choices import Kind
from dearkd.errors import InvalidInput, NotFound
from dearkd.jobs.model import Delivery
from dearkd_api.access import Caller
from dearkd_api.backend import Backend, Uses
from dearkd_api.bodies import JsonRoute
from dearkd_api.pages import DEFAULT_LIMIT, After, Limit, page
from dearkd_api.steering import COLLECTIONS


class DeliveryPage(Page[Delivery]):
    pass


def _require_job(kind: Kind, identifier: str, backend: Backend, caller: str | None) -> None:
    if backend.store.get(identifier, owner=caller).kind != kind:
        raise NotFound(f"there is no {identifier!r} in {COLLECTIONS[kind]}")


def _router(kind: Kind) -> APIRouter:
    """The routes that both kinds of jobs have."""
    router = APIRouter(prefix=f"/v1/{COLLECTIONS[kind]}", tags=[COLLECTIONS[kind]], route_class=JsonRoute)

    @router.get("/{identifier}/deliveries", response_model=DeliveryPage)
    def list_deliveries(
        identifier: str, backend: Uses, caller: Caller, limit: Limit = DEFAULT_LIMIT, after: After = None
    ) -> Response:
        """List what the job's webhook is told, oldest first, with each attempt; the latest hundred are kept."""
        _require_job(kind, identifier, backend, caller)
        try:
            found, more = backend.deliveries.page(identifier, after=after, limit=limit)
        except NotFound:
            raise InvalidInput.at(
                "/after", f"{after!r:.100} is no id of a delivery of this job; give the last one that you received"
            ) from None
        return JSONResponse(page([delivery.model_dump(mode="json") for delivery in found], more))

    @router.post("/{identifier}/deliveries/{delivery}/redeliver", status_code=202, response_model=Delivery)
    def redeliver(identifier: str, delivery: str, backend: Uses, caller: Caller) -> Response:
        """Tell it again, at once and with the same id, whatever came of it before."""
        _require_job(kind, identifier, backend, caller)
        return JSONResponse(backend.deliveries.redeliver(identifier, delivery).model_dump(mode="json"), status_code=202)

    return router


synthesis = _router("synthesis")
training = _router("training")
