"""Files of datasets and models: streamed with ranges from a local store, by a redirect from a bucket."""

import re
from typing import Any, Final

from fastapi import Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from dearkd.errors import NotFound
from dearkd.storage.objects import Storage
from dearkd_api.backend import Backend
from dearkd_api.problems import problem
from dearkd_api.verification import ServedFile

_TYPES: Final = {
    "json": "application/json",
    "md": "text/markdown; charset=utf-8",
    "png": "image/png",
    "tar": "application/x-tar",
    "webp": "image/webp",
}
_OTHER: Final = "application/octet-stream"

_BYTES: Final = {"schema": {"type": "string", "format": "binary"}}
_CONTENT: Final = {kind.partition(";")[0]: {} if "json" in kind else _BYTES for kind in (_OTHER, *_TYPES.values())}
FILE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The file.", "content": _CONTENT},
    206: {"description": "The range of it that was asked for.", "content": _CONTENT},
    304: {"description": "It is the one that `If-None-Match` names."},
    307: {"description": "It lies in a bucket, where `Location` leads for a while."},
}
"""The answers of a route that ends in `send_verified`, for the schema."""


async def send_verified(request: Request, backend: Backend, file: ServedFile) -> Response:
    """Answer a GET or HEAD for a stored file, once it is verified against its manifest.

    Raises:
        NotFound: if it is gone.
        CorruptData: if it is not what the manifest says; nothing of it is sent.
    """
    await backend.verification.require(file)
    sha256 = file.listed.sha256 if file.listed else None
    return await run_in_threadpool(send_file, request, backend.storage, file.key, sha256=sha256)


def send_file(request: Request, storage: Storage, key: str, *, sha256: str | None = None) -> Response:
    """Answer a GET or HEAD for a stored object (RFC 9110): 200, 206, 304, 307 or 416.

    Args:
        sha256: of the whole object, if a manifest lists it; it becomes the ETag.

    Raises:
        NotFound: if it is not there.
    """
    name = key.rpartition("/")[2]
    try:
        size = storage.size(key)
    except NotFound:
        raise NotFound(f"{name} is gone from storage, where it was {key}") from None
    etag = f'"{sha256}"' if sha256 else None
    headers = {"Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"} | ({"ETag": etag} if etag else {})
    if etag is not None and matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    if request.method == "GET" and (url := storage.presign(key)) is not None:
        return RedirectResponse(url, status_code=307)

    asked = request.headers.get("range") if request.headers.get("if-range") in (None, etag) else None
    span = _span(asked, size) if asked else None
    if span is not None and span[0] >= span[1]:
        headers["Content-Range"] = f"bytes */{size}"
        detail = f"{asked} asks for none of the {size} bytes of {name}"
        return problem(416, "No such range", detail, "range_not_satisfiable", headers=headers)
    start, stop = span or (0, size)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    status = 200 if span is None else 206
    media_type = _TYPES.get(name.rpartition(".")[2], _OTHER)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    body = storage.stream(key, start=start, end=stop) if stop > start else iter(())
    return StreamingResponse(body, status_code=status, headers=headers, media_type=media_type)


def matches(header: str, etag: str) -> bool:
    """Tell whether the value of `If-None-Match` names this ETag."""
    return header.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _span(header: str, size: int) -> tuple[int, int] | None:
    """Start and exclusive end of a single byte range, empty if it lies outside; None to answer with the whole file.

    Malformed ranges and several at once may be answered with the whole (RFC 9110, section 14.2).
    """
    match = re.fullmatch(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*", header)
    if match is None or match[1] == match[2] == "":
        return None
    first, last = match[1], match[2]
    if first == "":
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size
