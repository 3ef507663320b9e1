"""The page of a training run: its curves, beside those of others, its epochs and checkpoints."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from dearkd.errors import CorruptData, InvalidInput, NotFound
from dearkd.jobs.model import Job, kind_of
from dearkd.storage.checkpoints import CheckpointFile
from dearkd_api import checkpoints, jobs, steering
from dearkd_api.access import Caller, Viewer
from dearkd_api.backend import Backend, Uses
from dearkd_api.dashboard import epochs, lineage
from dearkd_api.dashboard.forms import PageRoute
from dearkd_api.dashboard.frame import show
from dearkd_api.dashboard.job import log_end, lost_job
from dearkd_api.dashboard.model import report_file
from dearkd_api.page_paths import page_of

MOST_ROWS = 20_000
SHOWN_ROWS = 20
MOST_COMPARED = 5
OTHERS = 50

router = APIRouter(route_class=PageRoute)

Compared = Annotated[list[str] | None, Query(alias="with", max_length=50)]
"""The ids of other runs, whose curves are laid over."""


@router.get("/runs/{identifier}")
def run_page(
    identifier: str,
    request: Request,
    backend: Uses,
    caller: Caller,
    viewer: Viewer,
    compared: Compared = None,
    part: str = "",
) -> Response:
    """Show a training run; with `part` what renews itself alone: `state`, `epochs`, `log`."""
    if kind_of(identifier) == "synthesis":
        return RedirectResponse(page_of(identifier), 303)
    steering.require_kind("training", identifier)
    try:
        job = steering.seen("training", identifier, backend, caller)
    except NotFound:
        return lost_job(request, identifier, backend, caller)
    others = _others(compared, backend, caller)
    return show(
        request,
        "run.html",
        job=job,
        allowed=steering.actions_of(job),
        lineage=lineage.of_run(job, backend, caller, viewer),
        log=partial(log_end, job, backend, caller),
        part=part,
        groups=epochs.GROUPS,
        compared=others,
        query="".join(f"&with={one}" for one in others),
        offered=[
            one
            for one in backend.store.page("training", owner=caller, limit=OTHERS)[0]
            if one.id not in (job.id, *others)
        ],
        rows=partial(_last_rows, identifier, backend, caller),
        figures=epochs.figures,
        report=_report(job, backend, viewer),
        kept=partial(_checkpoints, identifier, backend, caller),
    )


@router.get("/runs/{identifier}/curves/{group}.json")
def curves(identifier: str, group: str, backend: Uses, caller: Caller, compared: Compared = None) -> Response:
    """The figures of a group by epoch, of this run and of those that it is compared with, for the chart."""
    if group not in epochs.GROUPS:
        raise NotFound(f"there is no chart {group!r:.80}: there are {', '.join(epochs.GROUPS)}")
    runs = {}
    for one in (identifier, *_others(compared, backend, caller)):
        job = steering.find("training", one, backend, caller)
        name = job.name or one
        runs[name if name not in runs else one] = jobs.rows_of(one, backend, caller, limit=MOST_ROWS)[0]
    return JSONResponse(epochs.chart(runs, group), headers={"Cache-Control": "no-cache"})


@router.get("/runs/{identifier}/checkpoints/{checkpoint}/files/{name:path}")
async def checkpoint_file(
    identifier: str, checkpoint: str, name: str, request: Request, backend: Uses, caller: Caller
) -> Response:
    """A file of a checkpoint, as the same address under `/v1` gives it."""
    return await checkpoints.get_file(identifier, checkpoint, name, request, backend, caller)


def _others(compared: list[str] | None, backend: Backend, caller: str | None) -> list[str]:
    """The runs to compare with, once each. Raises `NotFound` for one that the caller may not see."""
    others = [*dict.fromkeys(one for one in compared or [] if one)]
    if len(others) > MOST_COMPARED:
        raise InvalidInput.at("/with", f"{len(others)} runs; at most {MOST_COMPARED} are laid over")
    for one in others:
        steering.find("training", one, backend, caller)
    return others


def _report(job: Job, backend: Backend, viewer: str | None) -> str | None:
    """The address of the report that the run has left with its model."""
    identifier = job.made.get("model")
    try:
        has_one = identifier is not None and report_file(backend.models.get(identifier, viewer=viewer)) is not None
    except (NotFound, CorruptData):
        return None  # deleted, or damaged, which its own page says
    return f"{page_of(str(identifier))}/report" if has_one else None


def _last_rows(identifier: str, backend: Backend, caller: str | None) -> list[epochs.Row]:
    rows, _ = jobs.rows_of(identifier, backend, caller, limit=MOST_ROWS)
    return [*reversed(rows[-SHOWN_ROWS:])]


def _checkpoints(identifier: str, backend: Backend, caller: str | None) -> list[CheckpointFile]:
    return checkpoints.kept_of(identifier, backend, caller)
