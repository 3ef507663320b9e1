"""The page of a training run."""

from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from dearkd.errors import NotFound
from dearkd.jobs.model import kind_of
from dearkd_api import steering
from dearkd_api.access import Caller, Viewer
from dearkd_api.backend import Uses
from dearkd_api.dashboard import lineage
from dearkd_api.dashboard.forms import PageRoute
from dearkd_api.dashboard.frame import show
from dearkd_api.dashboard.job import log_end, lost_job
from dearkd_api.page_paths import page_of

router = APIRouter(route_class=PageRoute)


@router.get("/runs/{identifier}")
def run_page(
    identifier: str, request: Request, backend: Uses, caller: Caller, viewer: Viewer, part: str = ""
) -> Response:
    """Show a training run; with `part` what renews itself alone: `state`, `log`."""
    if kind_of(identifier) == "synthesis":
        return RedirectResponse(page_of(identifier), 303)
    steering.require_kind("training", identifier)
    try:
        job = steering.find("training", identifier, backend, caller)
    except NotFound:
        return lost_job(request, identifier, backend, caller)
    return show(
        request,
        "run.html",
        job=job,
        allowed=steering.actions_of(job),
        lineage=lineage.of_run(job, backend, caller, viewer),
        log=partial(log_end, job, backend, caller),
        part=part,
    )
