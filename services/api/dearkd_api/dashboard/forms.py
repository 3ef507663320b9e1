"""Forms: read within bounds, and refused without the token that the page they were sent from holds."""

import hmac
from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

import anyio.to_thread
from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from dearkd.errors import Forbidden, InvalidInput
from dearkd_api.bodies import BoundedRequest
from dearkd_api.boundary import READING
from dearkd_api.multipart import parts
from dearkd_api.sessions import COOKIE
from dearkd_api.uploads import Upload, upload_place

TOKEN: Final = "form_token"
TOKEN_HEADER: Final = "x-form-token"
CONTENT_TYPES: Final = ("application/x-www-form-urlencoded",)
UPLOAD_TYPES: Final = ("multipart/form-data",)
"""Content types of forms with a file, which few paths take."""
MAX_FIELDS: Final = 500
MAX_TEXT_BYTES: Final = 4096
"""The most bytes of a field beside a file."""
FILE: Final = "image"
MAX_FILE_BYTES: Final = 16 * 2**20
"""The most bytes of a file that a form sends; programs may send more to `/v1`."""

Fields = dict[str, str]
"""The fields of a form by name; of one that was given several times the last."""


class PageRoute(APIRoute):
    """A route of pages: whatever may change something has proved, before it begins, that a page of ours sent it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def check_and_handle(request: Request) -> Response:
            if request.method not in READING:
                request.state.form = await _read(request)
                given = request.state.form.pop(TOKEN, None) or request.headers.get(TOKEN_HEADER, "")
                await run_in_threadpool(_require_token, request, given)
            return await handle(request)

        return check_and_handle


async def _read(request: Request) -> Fields:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in UPLOAD_TYPES:
        return await _read_parts(request)
    if kind not in CONTENT_TYPES:
        return {}
    body = await BoundedRequest(request.scope, request.receive).body()
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError:
        raise InvalidInput(
            f"the form cannot be read: it has over {MAX_FIELDS} fields, or text that is not UTF-8"
        ) from None


async def _read_parts(request: Request) -> Fields:
    """Read a form with a file, which is kept as `request.state.file`, as uploads are read."""
    backend = request.app.state.backend
    upload = Upload(request, backend, max_bytes=MAX_FILE_BYTES + MAX_TEXT_BYTES)
    await upload.begin()
    fields: Fields = {}
    request.state.file = b""

    def read() -> None:
        for count, part in enumerate(parts(request.headers["content-type"], upload.chunks())):
            if count == MAX_FIELDS:
                raise InvalidInput(f"the form has over {MAX_FIELDS} parts: send its fields alone")
            if part.name == FILE:
                request.state.file = part.read(MAX_FILE_BYTES)
            else:
                fields[part.name[:80]] = part.read(MAX_TEXT_BYTES).decode(errors="replace")

    async with upload_place(backend):
        await anyio.to_thread.run_sync(read, limiter=backend.upload_limiter)
    return fields


def _require_token(request: Request, given: str) -> None:
    wanted = request.app.state.backend.sessions.form_token(request.cookies.get(COOKIE))
    if not hmac.compare_digest(wanted.encode(), given.encode()):
        raise Forbidden(
            "the form is not one of a page of this server, or it is from before you logged in: go back, load the page "
            "again, and send it once more",
            code="stale_form",
        )


def sent_file(request: Request) -> Iterator[bytes]:
    """The file of the form that was sent, of which nothing is held here any more: what waits for an answer is small."""
    file = [getattr(request.state, "file", b"")]
    request.state.file = b""
    return iter(file)


async def _form(request: Request) -> Fields:
    fields: Fields = request.state.form
    return fields


Form = Annotated[Fields, Depends(_form)]
"""The fields of the form that was sent to a `PageRoute`, without its token."""
