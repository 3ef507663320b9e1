"""Synthesis jobs and training runs: submitted, looked at, waited for, canceled, retried."""

import asyncio
import json
import re
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool

from dearkd import tracing
from dearkd.answers import JobView, StoredPage, SynthesisPlan, TrainingPlan
from dearkd.choices import Kind, Status
from dearkd.documents import Unread
from dearkd.errors import InvalidInput, NotFound, Unreadable, reason
from dearkd.identifiers import earliest_id, sibling
from dearkd.jobs.model import Event, Job
from dearkd.specs import SynthesisRequest, SynthesisSpec, TrainingRequest
from dearkd.specs.requests import PriorityRequest, RetryRequest
from dearkd_api import events, steering
from dearkd_api.access import Asking, Caller, Viewer
from dearkd_api.answers import EventPage, MetricsPage
from dearkd_api.backend import Backend, Uses
from dearkd_api.bodies import JsonRoute, Posted, ThisTurn
from dearkd_api.idempotency import IdempotencyKey
from dearkd_api.job_filters import LabelFilter, MomentFilter, labels_of
from dearkd_api.keys import Identity
from dearkd_api.pages import DEFAULT_LIMIT, ROW_ID, After, Limit, page, require_id, stored_page
from dearkd_api.steering import COLLECTIONS, find, require_kind, seen, shown
from dearkd_api.submissions import complete_synthesis, complete_training

POLL_SECONDS = 0.25

DryRun = Annotated[bool, Query(description="Only fill in and check the spec, and say what it would take.")]
DRY = "What it would take; nothing was made."


class JobPage(StoredPage[JobView]):
    pass


def render(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude={"owner", "traceparent", "schema_version"}) | {"links": _links(job)}


def _links(job: Job) -> dict[str, str]:
    here = f"/v1/{COLLECTIONS[job.kind]}/{job.id}"
    links = {
        "self": here,
        "cancel": f"{here}/cancel",
        "retry": f"{here}/retry",
        "pause": f"{here}/pause",
        "resume": f"{here}/resume",
        "events": f"{here}/events",
        "log": f"{here}/log",
        "deliveries": f"{here}/deliveries",
    }
    below = (
        {"preview": "preview.png", "live": "live.png", "timelapse": "timelapse.webp"}
        if job.kind == "synthesis"
        else {name: name for name in ("metrics", "checkpoints")}
    )
    links |= {name: f"{here}/{tail}" for name, tail in below.items()}
    return links | {name: f"/v1/{name}s/{identifier}" for name, identifier in job.made.items()}


def _accepted(job: Job, backend: Backend) -> Response:
    body = render(shown([job], backend)[0])
    tracing.annotate({"dearkd.job.id": job.id})
    return JSONResponse(body, status_code=202, headers={"Location": body["links"]["self"]})


def _router(kind: Kind) -> APIRouter:
    """The routes that both kinds of jobs have."""
    router = APIRouter(prefix=f"/v1/{COLLECTIONS[kind]}", tags=[COLLECTIONS[kind]], route_class=JsonRoute)

    @router.get("", response_model=JobPage)
    def list_newest_first(
        backend: Uses,
        caller: Caller,
        status: Status | None = None,
        labels: LabelFilter = None,
        created_after: MomentFilter = None,
        created_before: MomentFilter = None,
        limit: Limit = DEFAULT_LIMIT,
        after: After = None,
    ) -> Response:
        """List jobs, newest first; if there are keys, only those of the caller's key."""
        prefix: Literal["syn", "run"] = "syn" if kind == "synthesis" else "run"
        require_id(after, prefix)
        before = earliest_id(prefix, created_before) if created_before is not None else None
        unread: list[Unread] = []
        jobs, more = backend.store.page(
            kind,
            status=status,
            limit=limit,
            after=min(filter(None, (after, before)), default=None),
            owner=caller,
            labels=labels_of(labels),
            since=earliest_id(prefix, created_after) if created_after is not None else None,
            unread=unread,
        )
        return JSONResponse(stored_page([render(job) for job in shown(jobs, backend)], more, unread))

    @router.get("/{identifier}", response_model=JobView)
    async def get(
        identifier: str,
        request: Request,
        backend: Uses,
        caller: Caller,
        wait: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False)] = 0,
    ) -> Response:
        """The job; with `wait`, answered when its status changes, at the latest after so many seconds."""
        first = job = await run_in_threadpool(seen, kind, identifier, backend, caller)
        until = asyncio.get_running_loop().time() + wait
        while not job.terminal and job.status == first.status and not backend.stopping.is_set():
            left = until - asyncio.get_running_loop().time()
            if left <= 0 or await request.is_disconnected():
                break
            await asyncio.sleep(min(left, POLL_SECONDS))
            job = await run_in_threadpool(seen, kind, identifier, backend, caller)
        return JSONResponse(render(job))

    @router.post("/{identifier}/cancel", status_code=202, response_model=JobView)
    def cancel(identifier: str, backend: Uses, caller: Caller) -> Response:
        """Cancel a job: at once if it does not run yet; a running one is `canceling` until it stops."""
        return _accepted(steering.cancel(kind, identifier, backend, caller), backend)

    @router.post("/{identifier}/pause", status_code=202, response_model=JobView)
    def pause(identifier: str, backend: Uses, caller: Caller) -> Response:
        """Let a job stand still: it holds no worker, and loses nothing. 409 where it has ended."""
        return _accepted(steering.pause(kind, identifier, backend, caller), backend)

    @router.post("/{identifier}/resume", status_code=202, response_model=JobView)
    def resume(identifier: str, backend: Uses, caller: Caller) -> Response:
        """Let a paused job go on. 409 where it is not paused."""
        return _accepted(steering.resume(kind, identifier, backend, caller), backend)

    @router.post("/{identifier}/priority", status_code=202, response_model=JobView)
    def set_priority(identifier: str, asked: PriorityRequest, backend: Uses, caller: Caller) -> Response:
        """Change the place of a job among those that wait. 409 where it has ended."""
        find(kind, identifier, backend, caller)
        return _accepted(backend.store.set_priority(identifier, asked.priority), backend)

    @router.post("/{identifier}/retry", status_code=202, response_model=JobView)
    def retry(
        identifier: str,
        backend: Uses,
        caller: Caller,
        asked: RetryRequest = RetryRequest(),
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Continue a failed or canceled job, or one that Redis lost, from its finished shards or its last checkpoint.

        With `{"from": "beginning"}` it starts over, and what it made so far is deleted: for a job whose shards or
        checkpoint are damaged.
        """
        from_beginning = asked.start == "beginning"
        return _accepted(steering.retry(kind, identifier, backend, caller, from_beginning=from_beginning), backend)

    @router.get("/{identifier}/events", response_model=EventPage)
    async def list_events(
        identifier: str,
        request: Request,
        backend: Uses,
        caller: Caller,
        limit: Limit = DEFAULT_LIMIT,
        after: After = None,
    ) -> Response:
        """A job's events, oldest first: as a page, or with `Accept: text/event-stream` as they come.

        A stream begins behind `Last-Event-ID`, or with the first event, and ends with the job (204 to who has seen all
        of it) or after ten minutes. The latest two thousand are kept.
        """
        job = await run_in_threadpool(find, kind, identifier, backend, caller)

        def read(last: str | None, most: int = events.READ_AT_ONCE) -> tuple[list[Event], bool, str | None]:
            found, more = backend.store.events(identifier, after=last, limit=most)
            return found, more, found[-1].id if found else last

        if not events.wants_stream(request):
            found, more, _ = await run_in_threadpool(read, events.check_id(after), limit)
            return JSONResponse(page([events.shown(event) for event in found], more))
        begin = events.last_event_id(request, after)
        if job.terminal and begin is not None and not (await run_in_threadpool(read, begin))[0]:
            return Response(status_code=204)
        return events.stream(
            backend,
            read,
            job=identifier,
            after=begin,
            ended=lambda: backend.store.get(identifier).terminal,
        )

    @router.get("/{identifier}/log", response_class=PlainTextResponse)
    def log(identifier: str, backend: Uses, caller: Caller) -> Response:
        """The job's log: notes of its attempts and why they ended, a line each. It is kept if Redis is lost."""
        return PlainTextResponse(log_of(kind, identifier, backend, caller), headers={"Cache-Control": "no-cache"})

    return router


def log_of(kind: Kind, identifier: str, backend: Backend, caller: str | None) -> str:
    """The log of a job that the caller may see, also of one that Redis has lost."""
    require_kind(kind, identifier)
    backend.store.require_visible(identifier, caller)
    text = backend.log.read(identifier)
    if not text:
        find(kind, identifier, backend, caller)
    return text


synthesis = _router("synthesis")
training = _router("training")


@synthesis.post(
    "", status_code=202, response_model=JobView, responses={200: {"model": SynthesisPlan, "description": DRY}}
)
def synthesise(
    posted: Annotated[Posted[SynthesisRequest], Body()],
    backend: Uses,
    identity: Asking,
    caller: Caller,
    viewer: Viewer,
    turn: ThisTurn,
    dry_run: DryRun = False,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a dataset from a teacher. Only `teacher` is required; the preset fills in the rest."""
    spec, teacher = complete_synthesis(posted, backend, viewer)
    if dry_run:
        return JSONResponse(
            {
                "spec": spec.model_dump(mode="json"),
                "teacher_passes": spec.teacher_passes,
                "images": spec.num_samples,
                "least_images": spec.least_samples,
                "forecasts": [spec.cut_in_rounds.samples_before(number) for number in spec.forecasts],
                "shards": spec.num_shards,
                "estimated_bytes": spec.estimated_bytes(teacher.spec),
                "student": _student(spec),
            }
        )
    quotas = identity.quotas if identity else None
    size = spec.estimated_bytes(teacher.spec)
    with backend.quotas.charged(caller, quotas, images=spec.num_samples, size=size):
        job = backend.store.create_synthesis(
            spec,
            identifier=sibling(turn.identifier, "syn"),
            images=spec.num_samples,
            max_queued=_most_queued(backend, identity),
            owner=caller,
            webhook=posted.request.webhook,
        )
    return _accepted(job, backend)


def _most_queued(backend: Backend, identity: Identity | None) -> int:
    quota = identity.quotas.queued_jobs if identity else None
    most = backend.settings.max_queued_jobs
    return most if quota is None else min(most, quota)


def _student(spec: SynthesisSpec) -> dict[str, Any] | None:
    """The cost of training the job's own student; None if it trains none. Its teacher passes have no backward."""
    if not spec.student_shards:
        return None
    lengths = spec.shard_lengths()
    return {
        "shards": len(spec.student_shards),
        "images": sum(lengths[index] for index in spec.student_shards),
        "iterations": spec.adaptive_iterations,
        "teacher_forward_passes": spec.student_passes,
    }


@training.post(
    "", status_code=202, response_model=JobView, responses={200: {"model": TrainingPlan, "description": DRY}}
)
def train(
    posted: Annotated[Posted[TrainingRequest], Body()],
    backend: Uses,
    identity: Asking,
    caller: Caller,
    viewer: Viewer,
    turn: ThisTurn,
    dry_run: DryRun = False,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Train a transformer on a dataset, or on the one that a synthesis job makes, for which the run then waits."""
    submission = complete_training(posted, backend, caller, viewer)
    spec = submission.spec
    if dry_run:
        images = submission.facts.trained_images(spec.fraction, spec.holdout).expected
        return JSONResponse(
            {
                "spec": spec.model_dump(mode="json"),
                "images": images,
                "epochs": spec.epochs,
                "steps": spec.epochs * -(-images // spec.batch_size),
            }
        )
    return _accepted(
        backend.store.create_training(
            spec,
            identifier=sibling(turn.identifier, "run"),
            epochs=spec.epochs,
            waits_for=submission.waits_for,
            max_queued=_most_queued(backend, identity),
            owner=caller,
            webhook=posted.request.webhook,
        ),
        backend,
    )


@training.get("/{identifier}/metrics", response_model=MetricsPage)
def metrics(
    identifier: str, backend: Uses, caller: Caller, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Response:
    """One row for each epoch: stage, losses by name, rates, evaluation. A number that is not finite is null."""
    require_kind("training", identifier)
    if after is not None and not re.fullmatch(ROW_ID, after):
        raise InvalidInput.at("/after", f"{after!r} is no id of a row; give the last one that you received")
    return JSONResponse(page(*rows_of(identifier, backend, caller, behind=int(after or 0), limit=limit)))


def rows_of(
    identifier: str, backend: Backend, caller: str | None, *, behind: int = 0, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a run that the caller may see, also of one that Redis has lost; and whether there are more."""
    require_kind("training", identifier)
    backend.store.require_visible(identifier, caller)
    rows, more = backend.store.rows(identifier, after=behind, limit=limit)
    if not rows and not backend.store.rows(identifier, limit=1)[0]:
        rows, more = _stored_rows(identifier, backend, behind, limit)
    return [_without_nan(row) for row in rows], more


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}


def _stored_rows(identifier: str, backend: Backend, after: int, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """The rows in storage, for a run that Redis has lost."""
    key = f"runs/{identifier}/metrics.jsonl"
    try:
        text = backend.storage.read(key)
    except NotFound:
        backend.store.get(identifier)  # not found, or it has no rows yet
        return [], False
    try:
        rows = [{"id": str(i), **json.loads(line)} for i, line in enumerate(text.decode().splitlines(), 1)]
    except (ValueError, TypeError, RecursionError) as error:
        remedy = f"restore it from a backup; the model of {identifier} has a copy, if it was made"
        raise Unreadable(key, remedy, ValueError(reason(error))) from None
    return rows[after:][:limit], len(rows) > after + limit
