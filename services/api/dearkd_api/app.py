"""The application: routers, errors as problems, health."""

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse

import dearkd
from dearkd.answers import Ready
from dearkd.errors import DearKDError
from dearkd.jobs.queue import QueueName, alive
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd_api import (
    api_keys,
    audit,
    checkpoints,
    checks,
    dashboard,
    datasets,
    deliveries,
    events,
    jobs,
    models,
    predictions,
    previews,
    problems,
    sharing,
    teachers,
)
from dearkd_api.access import RequireKey
from dearkd_api.answers import Alive
from dearkd_api.audit import RecordChanges
from dearkd_api.backend import Backend, Uses
from dearkd_api.boundary import Boundary
from dearkd_api.hosts import AllowedHosts
from dearkd_api.job_metrics import JobMetrics
from dearkd_api.metrics import MeasureRequests, Metrics, add_metrics
from dearkd_api.openapi import DescribedAPI
from dearkd_api.queries import require_known_parameters
from dearkd_api.request_ids import GiveRequestIds
from dearkd_api.traces import TraceRequests

KINDS: dict[str, QueueName] = {"synth": "synth", "inspect": "inspect", "trainer": "train"}
"""Kinds of workers, and the queue on which each listens."""

BODIES = {
    "/v1/teachers": ("application/json", "multipart/form-data"),
    "/v1/models/[^/]+/predict": predictions.CONTENT_TYPES,
    "/models/[^/]+/predict": dashboard.UPLOAD_TYPES,
    "/(?!v1/).*": dashboard.CONTENT_TYPES,  # a page's form bears a token, and no foreign page knows that
}
"""Paths whose bodies are not JSON alone, and the content types that they take."""


def create_app(settings: Settings) -> FastAPI:
    """The control API on one storage and one Redis; neither need be reachable yet.

    Raises:
        InvalidInput: if the storage URL is invalid, or a key or an allowed host breaks a rule.
    """
    app = DescribedAPI(
        docs_url=None,  # an own page, from own files
        redoc_url=None,
        title="dearkd",
        version=dearkd.__version__,
        description="Make a training set out of a CNN alone, and train a vision transformer on it.",
        dependencies=[Depends(require_known_parameters)],
    )
    metrics = Metrics()
    backend = Backend.open(settings, metrics)
    app.state.backend = backend
    problems.install(app)
    app.add_middleware(RecordChanges, audit=backend.audit)
    app.add_middleware(
        RequireKey,
        keys=backend.keys,
        failures=backend.key_failures,
        quotas=backend.quotas,
        sessions=backend.sessions,
    )
    hosts = AllowedHosts.parse(settings.allowed_hosts, bound=settings.host)
    app.add_middleware(Boundary, hosts=hosts, bodies=BODIES)
    app.add_middleware(dashboard.ShowProblems)
    app.add_middleware(MeasureRequests, metrics=metrics)
    app.add_middleware(TraceRequests)
    app.add_middleware(GiveRequestIds)  # the last one added is the outermost
    routers = (
        teachers.router,
        checks.router,
        jobs.synthesis,
        jobs.training,
        previews.router,
        checkpoints.router,
        deliveries.synthesis,
        deliveries.training,
        datasets.router,
        models.router,
        predictions.router,
        events.router,
        *sharing.routers,
        api_keys.router,
        audit.router,
    )
    for router in routers:
        app.include_router(router)
    app.include_router(dashboard.router)
    app.mount("/static", dashboard.STATIC)
    app.add_api_route("/healthz", _alive, methods=["GET"], tags=["health"], response_model=Alive)
    app.add_api_route("/readyz", _ready, methods=["GET"], tags=["health"], response_model=Ready)
    # A client of its own: it gives up before Prometheus does (10 s), and its commands are none of those that are timed.
    add_metrics(app, metrics, JobMetrics(connect(settings, answer_seconds=3), KINDS))
    return app


async def _alive() -> Response:
    return JSONResponse({"status": "alive"})


def _ready(request: Request, backend: Uses) -> Response:
    """Report if storage and Redis can be reached (503 naming what cannot), and how many workers of each kind live."""
    down: dict[str, str] = {}
    workers: dict[str, int] = {}
    try:
        backend.store.redis.ping()
        workers = {kind: alive(backend.store.redis, name) for kind, name in KINDS.items()}
    except DearKDError as error:
        down["redis"] = error.message
    try:
        backend.storage.ping()
    except DearKDError as error:
        if error.code != "redis_unavailable":  # which remembers which storage it is: that is said above
            down["storage"] = error.message
    if not down:
        return JSONResponse({"status": "ready", "workers": workers})
    detail = "; ".join(f"{what} is down: {why}" for what, why in down.items())
    return problems.problem(503, "Not ready", detail, "not_ready", down=list(down), workers=workers)
