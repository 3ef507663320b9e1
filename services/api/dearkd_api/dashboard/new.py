"""New jobs: forms made from the typed requests, a forecast of what they would take, and errors at their fields."""

import json
from dataclasses import dataclass
from functools import partial
from secrets import token_urlsafe
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from dearkd.errors import Conflict, DearKDError, InvalidInput, LimitReached, NotFound
from dearkd.identifiers import new_id
from dearkd.jobs.idempotency import Turn
from dearkd.jobs.model import Job
from dearkd.specs import Spec, SynthesisRequest, TrainingRequest
from dearkd_api import jobs
from dearkd_api.access import Asking, Caller, Viewer
from dearkd_api.backend import Backend, Uses
from dearkd_api.bodies import Posted
from dearkd_api.dashboard import inputs
from dearkd_api.dashboard.forms import Form, PageRoute
from dearkd_api.dashboard.frame import show
from dearkd_api.idempotency import REPLAYED, answer_once, fingerprint_of
from dearkd_api.page_paths import page_of

OFFERED: Final = 100
"""The most resources that an input offers."""
ONCE: Final = "once"
"""The field that makes a form begin one job, however often it is sent as it is."""


@dataclass(frozen=True, slots=True)
class Sort:
    """A sort of jobs that can be asked for."""

    request: type[Spec]
    title: str
    first: tuple[str, ...]
    """The inputs that most who ask need; the others are below."""
    begin: Any
    """The route of `/v1` that begins one."""
    posted: Any


SORTS: Final = {
    "synthesis": Sort(
        SynthesisRequest,
        "New synthesis job",
        ("teacher", "name", "preset", "images_per_class", "classes", "image_format", "parallelism", "seed", "labels"),
        jobs.synthesise,
        TypeAdapter(Posted[SynthesisRequest]),
    ),
    "training": Sort(
        TrainingRequest,
        "New training run",
        ("dataset", "name", "recipe", "teacher", "eval_dataset", "fraction", "processes", "seed", "labels"),
        jobs.train,
        TypeAdapter(Posted[TrainingRequest]),
    ),
}

router = APIRouter(route_class=PageRoute)


@router.get("/new/{kind}")
def form_page(kind: str, request: Request, backend: Uses, caller: Caller, viewer: Viewer) -> Response:
    """Show the form; what the address says of its inputs is filled in."""
    sort = _sort(kind)
    given = {name: value for name, value in request.query_params.items() if name != ONCE}
    return _form(request, kind, sort, given, backend, caller, viewer)


@router.post("/new/{kind}")
async def ask(
    kind: str,
    request: Request,
    backend: Uses,
    identity: Asking,
    caller: Caller,
    viewer: Viewer,
    form: Form,
    dry_run: bool = False,
) -> Response:
    """Begin what a form asks for, or say what it would take; where it breaks a rule, say so at the field."""
    sort = _sort(kind)
    wanted = [*inputs.inputs(sort.request)]
    again = partial(_form, request, kind, sort, form, backend, caller, viewer)

    def begin(turn: Turn) -> Response:
        posted = sort.posted.validate_python(inputs.read(form, wanted))
        answer: Response = sort.begin(posted, backend, identity, caller, viewer, turn, dry_run=dry_run)
        return answer

    async def begun(turn: Turn) -> Response:
        return await run_in_threadpool(begin, turn)

    def forecast() -> Response:
        found = json.loads(bytes(begin(Turn("new", new_id("tmp"))).body))
        seconds, like = _time(kind, found, backend, caller)
        return again(plan={"figures": found, "seconds": seconds, "like": like})

    try:
        if dry_run:
            return await run_in_threadpool(forecast)
        # The id is ours to choose: what else bears it may be another's. A form that was changed is another one.
        said = fingerprint_of(request, form)
        key = f"form {said}" if form.get(ONCE) else None
        answer = await answer_once(request, backend, said, begun, key=key)
    except (InvalidInput, Conflict, LimitReached) as error:
        return await run_in_threadpool(again, error=error)
    replayed = {REPLAYED: answer.headers[REPLAYED]} if REPLAYED in answer.headers else {}
    return RedirectResponse(page_of(json.loads(bytes(answer.body))["id"]), 303, replayed)


def _sort(kind: str) -> Sort:
    if kind not in SORTS:
        raise NotFound(f"there is no form for {kind!r:.80}: there are {', '.join(SORTS)}")
    return SORTS[kind]


def _form(
    request: Request,
    kind: str,
    sort: Sort,
    given: dict[str, str],
    backend: Backend,
    caller: str | None,
    viewer: str | None,
    *,
    error: DearKDError | None = None,
    plan: dict[str, Any] | None = None,
) -> Response:
    wanted = [*inputs.inputs(sort.request)]
    errors: dict[str, str] = {}
    general = []
    for one in error.errors if error else []:
        name = inputs.named_by(one.pointer, wanted)
        if name is None:
            general.append(f"{one.pointer}: {one.detail}" if one.pointer else one.detail)
        else:
            errors[name] = "; ".join(filter(None, (errors.get(name), one.detail)))
    if error and not errors and not general:
        general.append(error.message)
    return show(
        request,
        "new.html",
        status=_status(error),
        kind=kind,
        title=sort.title,
        first=sorted((one for one in wanted if one.name in sort.first), key=lambda one: sort.first.index(one.name)),
        rest=[one for one in wanted if one.name not in sort.first],
        given=given,
        errors=errors,
        general=general,
        plan=plan,
        once=given.get(ONCE) or token_urlsafe(16),
        offered=_offered(wanted, backend, caller, viewer),
    )


def _status(error: DearKDError | None) -> int:
    if error is None:
        return 200
    return 429 if isinstance(error, LimitReached) else 409 if isinstance(error, Conflict) else 422


def _offered(
    wanted: list[inputs.Input], backend: Backend, caller: str | None, viewer: str | None
) -> dict[str, list[tuple[str, str]]]:
    """Ids and names of what an input may name, newest first."""
    catalogs: dict[str, Any] = {
        "teacher": backend.teachers,
        "dataset": backend.datasets,
        "eval_dataset": backend.datasets,
        "adaptive_student": backend.models,
        "init": backend.models,
    }
    found = {}
    for one in wanted:
        if one.refers:
            listed, _ = catalogs[one.name].page(limit=OFFERED, viewer=viewer)
            found[one.name] = [(item.id, item.name or item.id) for item in listed]
    if "dataset" in found:
        made, _ = backend.store.page("synthesis", owner=caller, limit=OFFERED)
        found["dataset"] += [(job.id, f"{job.name or job.id}, when it is made") for job in made if not job.terminal]
    return found


def _time(kind: str, plan: dict[str, Any], backend: Backend, caller: str | None) -> tuple[float | None, str | None]:
    """The seconds that a job may take, and the one whose rate says so: the newest that is like it; None without any."""
    spec = plan["spec"]

    def synthesised(job: Job) -> bool:
        ended = job.status == "succeeded" and job.attempt == 1 and job.started_at and job.finished_at
        return bool(ended) and job.spec.get("teacher") == spec["teacher"]

    def trained(job: Job) -> bool:
        alike = job.spec.get("student") == spec["student"] and job.spec.get("batch_size") == spec["batch_size"]
        return alike and bool(job.metrics.get("images_per_second"))

    if kind == "synthesis":
        found, _ = backend.store.search("synthesis", owner=caller, where=synthesised, limit=1, most=OFFERED)
        for job in found:
            assert job.started_at is not None
            assert job.finished_at is not None
            took = (job.finished_at - job.started_at).total_seconds()
            return took * plan["teacher_passes"] / job.synthesis_spec.teacher_passes, job.id
    else:
        found, _ = backend.store.search("training", owner=caller, where=trained, limit=1, most=OFFERED)
        for job in found:
            return plan["images"] * plan["epochs"] / job.metrics["images_per_second"], job.id
    return None, None
