"""Pictures of a synthesis job: the grid of what is done, and of what is being optimised at this moment."""

import io
import json
from hashlib import sha256
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from PIL import Image

from dearkd.data.grid_layouts import LAYOUT
from dearkd.errors import NotFound
from dearkd.jobs.model import Job, dataset_of, live_key
from dearkd_api.access import Caller
from dearkd_api.backend import Backend, Uses
from dearkd_api.files import matches
from dearkd_api.steering import find

_SAME: Final = {"description": "It is the one that `If-None-Match` names."}
PNG: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The grid.", "content": {"image/png": {}}},
    304: _SAME,
}
WEBP: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The animation.", "content": {"image/webp": {}}},
    304: _SAME,
}

router = APIRouter(prefix="/v1/synthesis-jobs", tags=["synthesis-jobs"])


@router.get("/{identifier}/preview.png", response_class=Response, responses=PNG)
def preview(identifier: str, request: Request, backend: Uses, caller: Caller) -> Response:
    """The sample grid so far; it grows while the job runs. Before the first shard is done it is the live one."""
    try:
        return finished(identifier, request, backend, caller)
    except NotFound:
        job = find("synthesis", identifier, backend, caller)
    try:
        return _answer(request, _live(job, backend))
    except NotFound:
        raise NotFound(f"{identifier} has no preview yet: it comes with the first images") from None


@router.get("/{identifier}/live.png", response_class=Response, responses=PNG)
def live(identifier: str, request: Request, backend: Uses, caller: Caller) -> Response:
    """The images that a worker is optimising, as they were a few seconds ago. 404 once the job has ended."""
    return _answer(request, _live(find("synthesis", identifier, backend, caller), backend))


@router.get("/{identifier}/timelapse.webp", response_class=Response, responses=WEBP)
def timelapse(identifier: str, request: Request, backend: Uses, caller: Caller) -> Response:
    """The job's first batch from noise to images, an animated WebP; it comes with the first shard."""
    find("synthesis", identifier, backend, caller)
    try:
        animation = backend.storage.read(f"datasets/{dataset_of(identifier)}/timelapse.webp")
    except NotFound:
        raise NotFound(f"{identifier} has no time-lapse yet: it comes with the first shard") from None
    return _answer(request, animation, "image/webp")


def finished(identifier: str, request: Request, backend: Backend, caller: str | None) -> Response:
    """The grid of the images that are done. Raises `NotFound` before the first."""
    find("synthesis", identifier, backend, caller)
    return _answer(request, backend.storage.read(f"datasets/{dataset_of(identifier)}/preview.png"))


def live_layout(identifier: str, backend: Backend, caller: str | None) -> Any:
    """The layout of the live grid as its worker wrote it into the PNG; None without a picture, or without a layout."""
    try:
        picture = _live(find("synthesis", identifier, backend, caller), backend)
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as opened:
            return json.loads(opened.info.get(LAYOUT, "null"))
    except (NotFound, OSError, ValueError, SyntaxError, RecursionError):  # Pillow raises the third last for broken PNGs
        return None


def _live(job: Job, backend: Backend) -> bytes:
    done = f"GET /v1/synthesis-jobs/{job.id}/preview.png has the images that are done"
    if job.terminal:
        raise NotFound(f"{job.id} has ended ({job.status}), and nothing is being optimised any more: {done}")
    try:
        return backend.storage.read(live_key(job.id))
    except NotFound:
        raise NotFound(
            f"{job.id} is {job.status} and has no live picture yet: one comes within seconds of the first step, unless "
            f"its workers show none (DEARKD_PREVIEW_SECONDS is 0); {done}"
        ) from None


def _answer(request: Request, picture: bytes, media_type: str = "image/png") -> Response:
    """Answer with a picture that is asked for again and again: 304 to who has it already."""
    etag = f'"{sha256(picture).hexdigest()}"'
    headers = {"Cache-Control": "no-cache", "ETag": etag}
    if matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    return Response(picture, media_type=media_type, headers=headers)
