"""The span of a request, by OpenTelemetry's conventions for HTTP servers; jobs that it creates go on below it."""

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dearkd import tracing
from dearkd_api.boundary import EXEMPT
from dearkd_api.metrics import METHODS

PARENT: Final = ("traceparent", "tracestate")
"""Headers by which a client says of which trace its request is (W3C Trace Context)."""


class TraceRequests:
    """Middleware: a span of each request, within the client's trace if it names one; none of probes and own files."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in EXEMPT or scope["path"].startswith("/static/"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        attributes: dict[str, str | int | list[str]] = {
            "http.request.method": method,
            "network.protocol.version": scope["http_version"],
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "http.response.header.x-request-id": [scope["state"]["request_id"]],
        }
        if client := scope.get("client"):
            attributes["client.address"] = client[0]
        if agent := headers.get("user-agent"):
            attributes["user_agent.original"] = agent
        status = 500  # of what ends without an answer: outside of here it becomes one

        async def noticed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        # Two of a header are joined, which makes no valid one.
        parent = {name: ",".join(headers.getlist(name)) for name in PARENT if name in headers}
        with tracing.span(method, attributes, role="server", parent=parent):
            try:
                await self.app(scope, receive, noticed)
            finally:
                found: dict[str, str | int] = {"http.response.status_code": status}
                if template := getattr(scope.get("route"), "path", None):
                    found["http.route"] = str(template)
                tracing.annotate(found, name=f"{method} {template}" if template else None)
                if status >= 500:
                    tracing.fail(str(status))
