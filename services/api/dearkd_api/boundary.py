"""The checks of a request before its body is read: that its host is ours, and that no foreign web page sent it.

A browser sends requests to a local server for any page that asks it to. They show in what it adds itself: `Host` (a
foreign name that was pointed here), `Origin` and `Sec-Fetch-Site` (another page's request), and the content type (a
page may send forms and plain text anywhere, JSON only where it is allowed to). Keys change nothing of this.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dearkd_api.answer_headers import GUARDS
from dearkd_api.hosts import AllowedHosts
from dearkd_api.problems import problem

EXEMPT: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Probes call by address, and learn nothing that is worth a Host header."""

READING: Final = frozenset({"GET", "HEAD"})

JSON: Final = ("application/json",)


class Boundary:
    """Middleware, the outermost: refuses foreign requests, and sets the headers that every answer bears.

    Args:
        hosts: the names under which the server may be called.
        bodies: patterns of whole paths whose bodies have another content type than JSON alone, and which; `image/`
            stands for all that begin so. A foreign page may send none of them unasked, but for forms, which bear a
            token that it does not know (`dashboard.forms`).
    """

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, bodies: Mapping[str, Sequence[str]] | None = None) -> None:
        self.app = app
        self.hosts = hosts
        self.bodies = [(re.compile(pattern), types) for pattern, types in (bodies or {}).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are none; before the handshake: 403
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in GUARDS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if scope["path"] not in EXEMPT and not self.hosts.allow(hosts):
            return _misdirected(hosts)
        if scope["method"] in READING:
            return None
        for origin in headers.getlist("origin"):
            if not self.hosts.own(origin, hosts[0] if hosts else ""):
                return _foreign("Origin", origin)
        for site in headers.getlist("sec-fetch-site"):
            if site not in ("same-origin", "none"):
                return _foreign("Sec-Fetch-Site", site)
        if _has_body(headers):
            allowed = next((types for path, types in self.bodies if path.fullmatch(scope["path"])), JSON)
            given = headers.getlist("content-type")
            said = given[0].partition(";")[0].strip().lower() if len(given) == 1 else ""
            if not any(said == kind or (kind.endswith("/") and said.startswith(kind)) for kind in allowed):
                return _other_type(given, allowed)
        return None


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0 ") != ""


def _misdirected(hosts: list[str]) -> Response:
    given = {0: "there is no Host header", 1: f"Host is {hosts[0] if hosts else ''!r:.200}"}.get(
        len(hosts), f"there are {len(hosts)} Host headers"
    )
    detail = (
        f"{given}, which is not a name of this server: call it as localhost, 127.0.0.1 or [::1], or name the host in "
        "DEARKD_ALLOWED_HOSTS where the server is started"
    )
    return problem(421, "Not a host of this server", detail, "misdirected_request")


def _foreign(name: str, value: str) -> Response:
    detail = (
        f"{name} is {value!r:.200}: another site's page may not change anything here. Call from this server's own "
        "pages or from a program; a host under which it is reached by a proxy belongs in DEARKD_ALLOWED_HOSTS"
    )
    return problem(403, "From a foreign page", detail, "foreign_origin")


def _other_type(given: list[str], allowed: Sequence[str]) -> Response:
    said = f"the content type is {', '.join(given)!r:.200}" if given else "the body has no content type"
    hint = " (with curl, --json instead of -d)" if "application/json" in allowed else ""
    wanted = " or ".join(f"{kind}png and the like" if kind.endswith("/") else kind for kind in allowed)
    detail = f"{said}: send {wanted}{hint}"
    return problem(415, "Not a content type that is taken here", detail, "unsupported_media_type")
