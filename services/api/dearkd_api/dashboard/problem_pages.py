"""Problems as pages: for who came by a browser to a path for people, what went wrong and the way back."""

import json
from contextlib import suppress
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dearkd.errors import Unavailable
from dearkd_api.answer_headers import GUARDS
from dearkd_api.boundary import READING
from dearkd_api.dashboard.frame import bare, show
from dearkd_api.page_paths import is_page, local
from dearkd_api.problems import MEDIA_TYPE

BUG: Final = "This page failed unexpectedly; the server's log says more."
KEPT: Final = ("retry-after", "allow", "connection", "www-authenticate")
"""Headers of a problem that its page bears too."""
LOGIN_CODES: Final = ("unauthorized", "login_expired", "key_expired", "key_revoked")


class ShowProblems:
    """Middleware: answers with a page in place of a problem document, where the client takes HTML and the path is a
    page's. What programs get is unchanged."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not takes_page(scope):
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def caught(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                if Headers(raw=message["headers"]).get("content-type") == MEDIA_TYPE:
                    start = message
                    return
            elif start is not None:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    page = await run_in_threadpool(problem_page, Request(scope), json.loads(body), start)
                    await _guarded(page)(scope, receive, send)
                return
            await send(message)

        try:
            await self.app(scope, receive, caught)
        except Exception:
            # The server writes it to its log; what is said here is what a program would be told.
            problem = {"status": 500, "title": "Internal error", "code": "internal_error", "detail": BUG}
            page = bare("problem.html", status=500, problem=problem, path=local(scope["path"]))
            with suppress(RuntimeError):  # the answer had begun
                await _guarded(page)(scope, receive, send)
            raise


def _guarded(page: Response) -> Response:
    """A page with the headers that all answers bear: it is sent from outside of what sets them."""
    for name, value in GUARDS.items():
        page.headers.setdefault(name, value)
    return page


def takes_page(scope: Scope) -> bool:
    """Tell whether a problem of this request is to be a page: for a browser, or for htmx, which accepts anything."""
    headers = Headers(scope=scope)
    return is_page(scope["path"]) and (
        "text/html" in headers.get("accept", "").lower() or headers.get("hx-request") == "true"
    )


def problem_page(request: Request, problem: dict[str, Any], start: Message) -> Response:
    """The page of a problem document; the form that asks for a key where that is what is missing."""
    given = Headers(raw=start["headers"])
    headers = {name: given[name] for name in KEPT if name in given}
    if request.headers.get("hx-request") == "true" and problem["code"] in LOGIN_CODES:
        headers["HX-Refresh"] = "true"  # a part of a page has no room for a login
    if problem["code"] in LOGIN_CODES:
        why = None if problem["code"] == "unauthorized" else problem["detail"]
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        goal = local(asked if request.method in READING else None)
        try:
            return show(request, "login.html", status=problem["status"], headers=headers, next=goal, why=why)
        except Unavailable:
            pass  # no form can be made then: the page says what there is to say
    return bare(
        "problem.html", status=problem["status"], headers=headers, problem=problem, path=local(request.url.path)
    )
