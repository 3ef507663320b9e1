"""The page of a synthesis job, and what it loads."""

from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse

from dearkd.data.manifests import DatasetManifest
from dearkd.errors import DearKDError, NotFound
from dearkd.jobs.model import Job, dataset_of, kind_of
from dearkd_api import jobs, previews, steering
from dearkd_api.access import Caller, Viewer
from dearkd_api.backend import Backend, Uses
from dearkd_api.dashboard import lineage, terms
from dearkd_api.dashboard.forms import Form, PageRoute
from dearkd_api.dashboard.frame import show
from dearkd_api.page_paths import local, page_of

LOG_LINES = 200
"""The lines of a log that a page shows; all of them are behind a link."""
NO_PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 96" width="320" height="96">'
    '<rect width="320" height="96" fill="#8884"/><text x="160" y="52" text-anchor="middle" font-size="13" '
    'font-family="sans-serif" fill="#888">no picture yet: it comes with the first images</text></svg>'
)

router = APIRouter(route_class=PageRoute)


@router.get("/jobs/{identifier}")
def job_page(
    identifier: str, request: Request, backend: Uses, caller: Caller, viewer: Viewer, part: str = ""
) -> Response:
    """Show a synthesis job; with `part` what renews itself alone: `state`, `terms`, `log`."""
    if kind_of(identifier) == "training":
        return RedirectResponse(page_of(identifier), 303)
    steering.require_kind("synthesis", identifier)
    try:
        job = steering.seen("synthesis", identifier, backend, caller)
    except NotFound:
        return lost_job(request, identifier, backend, caller)
    made = _made(job, backend, viewer)
    return show(
        request,
        "job.html",
        job=job,
        allowed=steering.actions_of(job),
        lineage=lineage.of_synthesis(job, backend, caller, viewer),
        curves=partial(terms.curves, backend.store, identifier),
        quality=made.quality if made else None,
        class_names={str(one.index): one.name for one in made.classes} if made else {},
        pictured=backend.storage.exists(f"datasets/{dataset_of(identifier)}/preview.png"),
        filmed=backend.storage.exists(f"datasets/{dataset_of(identifier)}/timelapse.webp"),
        made_is_gone=job.status == "succeeded" and made is None,
        log=partial(log_end, job, backend, caller),
        part=part,
    )


@router.post("/jobs/{identifier}/{action}")
def steer_synthesis(identifier: str, action: str, backend: Uses, caller: Caller, form: Form) -> Response:
    """Pause, resume, cancel or retry a synthesis job, and go back to where the button was."""
    return steer(identifier, action, backend, caller, form)


@router.post("/runs/{identifier}/{action}")
def steer_run(identifier: str, action: str, backend: Uses, caller: Caller, form: Form) -> Response:
    """Pause, resume, cancel or retry a training run, and go back to where the button was."""
    return steer(identifier, action, backend, caller, form)


@router.get("/jobs/{identifier}/preview.png")
def preview(identifier: str, request: Request, backend: Uses, caller: Caller) -> Response:
    """The grid of the images that are done, or a picture that says that there is none yet."""
    try:
        return previews.finished(identifier, request, backend, caller)
    except NotFound:
        steering.find("synthesis", identifier, backend, caller)
        return _no_picture()


@router.get("/jobs/{identifier}/live.png")
def live(identifier: str, request: Request, backend: Uses, caller: Caller) -> Response:
    """The images at work, or a picture that says that there are none."""
    try:
        return previews.live(identifier, request, backend, caller)
    except NotFound:
        steering.find("synthesis", identifier, backend, caller)
        return _no_picture()


@router.get("/jobs/{identifier}/live.json")
def live_layout(identifier: str, backend: Uses, caller: Caller) -> Response:
    """Tell where the live grid shows which class, and the teacher's confidence in each image; null where unknown."""
    found = previews.live_layout(identifier, backend, caller)
    return JSONResponse(found, headers={"Cache-Control": "no-cache"})


@router.get("/jobs/{identifier}/timelapse.webp")
def timelapse(identifier: str, request: Request, backend: Uses, caller: Caller) -> Response:
    """The job's first batch from noise to images."""
    return previews.timelapse(identifier, request, backend, caller)


@router.get("/jobs/{identifier}/terms.json")
def terms_of(identifier: str, backend: Uses, caller: Caller) -> Response:
    """The terms of the loss over the steps, for the chart."""
    steering.find("synthesis", identifier, backend, caller)
    return JSONResponse(terms.curves(backend.store, identifier).chart(), headers={"Cache-Control": "no-cache"})


@router.get("/jobs/{identifier}/log")
@router.get("/runs/{identifier}/log")
def whole_log(identifier: str, backend: Uses, caller: Caller) -> Response:
    """The whole log as text."""
    kind = kind_of(identifier) or "synthesis"
    return PlainTextResponse(jobs.log_of(kind, identifier, backend, caller), headers={"Cache-Control": "no-cache"})


def _no_picture() -> Response:
    return Response(NO_PICTURE, media_type="image/svg+xml", headers={"Cache-Control": "no-cache"})


def steer(identifier: str, action: str, backend: Backend, caller: str | None, form: dict[str, str]) -> Response:
    """Do to a job what a button asks for."""
    kind = kind_of(identifier)
    if kind is None or action not in steering.ACTIONS:
        raise NotFound(f"there is no {action!r:.80} of {identifier!r:.80}")
    steering.ACTIONS[action](kind, identifier, backend, caller)
    return RedirectResponse(local(form.get("back"), page_of(identifier)), 303)


def lost_job(request: Request, identifier: str, backend: Backend, caller: str | None) -> Response:
    """The page of a job that storage knows, and Redis does not any more. Raises `NotFound` if neither does."""
    job = backend.store.accepted(identifier, owner=caller)
    ended = backend.store.ended(identifier)
    log = backend.log.read(identifier).splitlines()[-LOG_LINES:]
    return show(request, "lost.html", status=404, job=job, ended=ended, log=log)


def log_end(job: Job, backend: Backend, caller: str | None) -> list[str]:
    """The last lines of a job's log."""
    try:
        return jobs.log_of(job.kind, job.id, backend, caller).splitlines()[-LOG_LINES:]
    except DearKDError as error:  # storage is away, and all else of the page is there
        return [error.message]


def _made(job: Job, backend: Backend, viewer: str | None) -> DatasetManifest | None:
    """The dataset that a job has made; None where it has not, or it was deleted since."""
    if job.status != "succeeded":
        return None
    try:
        return backend.datasets.get(dataset_of(job.id), viewer=viewer)
    except NotFound:
        return None
