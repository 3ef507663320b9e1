"""The audit log of changes: written here for each request that changed something, read by administrators."""

import logging
from typing import Final

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dearkd.answers import Page
from dearkd.errors import DearKDError
from dearkd.identifiers import new_id
from dearkd.jobs.model import now
from dearkd.storage.audit import AuditLog, AuditRecord
from dearkd_api.backend import Uses
from dearkd_api.boundary import READING
from dearkd_api.idempotency import REPLAYED
from dearkd_api.keys import Identity
from dearkd_api.page_paths import LOGIN, LOGOUT
from dearkd_api.pages import DEFAULT_LIMIT, After, Limit, page, require_id
from dearkd_api.queries import known_parameters

QUESTION: Final = "/predict"
"""The end of the paths of requests that change nothing, though they are no GET."""
NOBODYS: Final = (LOGIN, LOGOUT)
"""Paths of requests that change nothing which is anybody's work."""
MOST_CHARACTERS: Final = 1000
"""The most characters of a path in a record."""

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/audit", tags=["audit"])


class AuditPage(Page[AuditRecord]):
    pass


@router.get("", response_model=AuditPage)
def list_newest_first(backend: Uses, limit: Limit = DEFAULT_LIMIT, after: After = None) -> Response:
    """List the changes that clients made, newest first. Needs the scope `admin` where there are keys."""
    found, more = backend.audit.page(limit=limit, after=require_id(after, "aud"))
    return JSONResponse(page([record.model_dump(mode="json") for record in found], more))


class RecordChanges:
    """Middleware, inside the one that knows the key: records each request that changed something, a page's form too.

    The record is written before the answer is sent. Where storage cannot take it, it goes to the log as an error.
    """

    def __init__(self, app: ASGIApp, audit: AuditLog) -> None:
        self.app = app
        self.audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in READING or scope["path"] in NOBODYS:
            await self.app(scope, receive, send)
            return

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400 and not _asks(scope):
                headers = Headers(raw=message["headers"])
                if REPLAYED not in headers:
                    await run_in_threadpool(self._record, scope, message["status"], _made(scope, headers))
            await send(message)

        await self.app(scope, receive, recorded)

    def _record(self, scope: Scope, status: int, resource: str | None) -> None:
        identity: Identity | None = scope["state"].get("identity")
        client = scope.get("client")
        record = AuditRecord(
            id=new_id("aud"),
            at=now(),
            key=identity.owner if identity else None,
            key_name=identity.name if identity else None,
            address=client[0] if client else None,
            method=scope["method"],
            path=scope["path"][:MOST_CHARACTERS],
            status=status,
            resource=resource,
            request_id=scope["state"].get("request_id"),
        )
        try:
            self.audit.add(record)
        except DearKDError as error:
            log.error("not in the audit log, since %s: %s", error, record.model_dump_json())


def _made(scope: Scope, headers: Headers) -> str | None:
    """The address of what a request made or changed; a page's button leads back to wherever its form says."""
    return headers.get("location") if scope["path"].startswith(("/v1/", "/new/")) else None


def _asks(scope: Scope) -> bool:
    """Tell whether a request that was answered has changed nothing: of what is only asked its route knows."""
    route = scope.get("route")
    if not isinstance(route, APIRoute):
        return False
    dry = QueryParams(scope["query_string"]).get("dry_run", "").lower() in ("1", "true", "yes", "on", "t", "y")
    return route.path.endswith(QUESTION) or (dry and "dry_run" in known_parameters(route))
