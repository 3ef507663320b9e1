"""Errors as RFC 9457 problem details: one shape for everything that goes wrong, ours or not."""

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from dearkd.errors import (
    Conflict,
    CorruptData,
    DearKDError,
    FieldError,
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    TooLarge,
    TooSlow,
    Unavailable,
    Unreadable,
)
from dearkd.redaction import public
from dearkd_api.answer_headers import GUARDS
from dearkd_api.request_ids import HEADER

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 5

STATUS: Final[Mapping[type[DearKDError], tuple[int, str]]] = {
    InvalidInput: (422, "The request breaks a rule"),
    Forbidden: (403, "It belongs to somebody else"),
    NotFound: (404, "There is no such thing"),
    Conflict: (409, "The state of things forbids this"),
    TooLarge: (413, "Too large"),
    TooSlow: (408, "Too slow"),
    LimitReached: (429, "As many as are allowed are there already"),
    Unavailable: (503, "Something that is needed cannot be reached"),
    CorruptData: (500, "Stored data are not what they should be"),
    Unreadable: (409, "Stored data are not what they should be"),
    DearKDError: (500, "Internal error"),
}

_HTTP_CODES: Final = {404: ("not_found", "There is no such page"), 405: ("method_not_allowed", "Method not allowed")}


def problem(
    status: int,
    title: str,
    detail: str,
    code: str,
    *,
    errors: Iterable[FieldError] = (),
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Response:
    """A problem document. `more` are extension members, as RFC 9457 allows."""
    document = {
        "type": f"urn:dearkd:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [{"pointer": e.pointer, "detail": e.detail} for e in errors],
        **more,
    }
    headers = ({"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}) | dict(headers or {})
    # ASCII: what was posted may hold surrogates, which UTF-8 cannot encode.
    return Response(json.dumps(document), status_code=status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let every error leave `app` as a problem document."""
    app.add_exception_handler(DearKDError, _from_ours)
    app.add_exception_handler(RequestValidationError, _from_validation)
    app.add_exception_handler(HTTPException, _from_http)
    app.add_exception_handler(ClientDisconnect, _from_disconnect)
    app.add_exception_handler(Exception, _from_bug)


async def _from_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, DearKDError)
    status, title = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    detail = error.message
    if status >= 500:
        log.warning("%s %s: %s%s", request.method, request.url.path, detail, f" ({error.cause})" * bool(error.cause))
        # What a library says of its troubles is not for clients, whoever raised it.
        detail = public(detail)
    # What is still to come of that request is waited for no longer.
    headers = {"Connection": "close"} if status == 408 else {}
    if isinstance(error, LimitReached) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return problem(status, title, detail, error.code, errors=error.errors, headers=headers)


async def _from_validation(request: Request, error: Exception) -> Response:
    """Query parameters and bodies, as FastAPI validated them; where in the request they stood is left out."""
    assert isinstance(error, RequestValidationError)
    found = InvalidInput.from_details([{**detail, "loc": detail["loc"][1:]} for detail in error.errors()])
    return await _from_ours(request, found)


async def _from_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, title = _HTTP_CODES.get(error.status_code, ("http_error", str(error.detail)))
    detail = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        detail += f"; allowed: {headers['Allow']}"
    return problem(error.status_code, title, detail, code, headers=headers)


def _methods(request: Request) -> list[str]:
    """The methods of all routes of this path; the framework names those of the first route only."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "POST")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


async def _from_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _from_bug(request: Request, error: Exception) -> Response:
    # The traceback goes to the log: the server raises the error again after this answer, which no middleware sees.
    detail = f"{request.method} {request.url.path} failed unexpectedly; the server's log says more"
    headers = {**GUARDS, HEADER: request.state.request_id}
    return problem(500, STATUS[DearKDError][1], detail, "internal_error", headers=headers)
