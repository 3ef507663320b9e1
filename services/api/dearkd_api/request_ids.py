"""`X-Request-Id`: the name of a request in its answer and in every line that it leaves in the log."""

import re
import secrets
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dearkd.log_lines import set_about

HEADER: Final = "x-request-id"
_TOKEN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


class GiveRequestIds:
    """Middleware: takes a request's id over if it is a token of up to 64 letters, digits and `._:-`, else makes one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist(HEADER)
        identifier = given[0] if len(given) == 1 and _TOKEN.fullmatch(given[0]) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = identifier
        # For as long as the server's task for this request lives: it logs what ends without an answer from here.
        set_about(request_id=identifier)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = identifier
            await send(message)

        await self.app(scope, receive, named)
