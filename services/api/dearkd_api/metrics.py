"""`GET /metrics` for Prometheus: what this process measured itself, and what Redis knows of jobs and workers.

Labels are few by construction: templates of routes instead of paths, names of commands, kinds and states. No name, id
or key is among them, since probes need no key here.
"""

import time
from typing import Final

from fastapi import FastAPI, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import dearkd
from dearkd.latency import Observer

METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
REQUEST_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
OPERATION_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)

disable_created_metrics()  # as many series again, which say when each was first seen


class Metrics:
    """The metrics of one application; several in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("dearkd", "The version of the API.", registry=self.registry).info({"version": dearkd.__version__})
        self._requests = Counter(
            "dearkd_http_requests_total",
            "Requests that were answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "dearkd_http_request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ("method", "route"),
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.redis = self._observer("redis", "commands on Redis")
        self.storage = self._observer("storage", "operations on storage")

    def _observer(self, service: str, operations: str) -> Observer:
        seconds = Histogram(
            f"dearkd_{service}_operation_seconds",
            f"Seconds that this process's {operations} took.",
            ("operation",),
            buckets=OPERATION_BUCKETS,
            registry=self.registry,
        )
        errors = Counter(
            f"dearkd_{service}_errors_total",
            f"This process's {operations} that failed because it could not be reached, or refused.",
            ("operation",),
            registry=self.registry,
        )

        def observe(operation: str, took: float, code: str | None) -> None:
            seconds.labels(operation).observe(took)
            # Redis remembers which storage it is: that Redis is away is no fault of the storage.
            failed = code is not None and (service == "redis" or code != "redis_unavailable")
            errors.labels(operation).inc(int(failed))

        return observe

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(method, route).observe(seconds)


class MeasureRequests:
    """Middleware: counts and times requests by method, template of their route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500  # of what ends without an answer: outside of here it becomes one

        async def noticed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noticed)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.answered(method, _route(scope), status, time.perf_counter() - began)


def _route(scope: Scope) -> str:
    """The template of the route that was taken; "none" where a request was refused before, or there is no such page."""
    if template := getattr(scope.get("route"), "path", None):
        return str(template)
    return "/static" if scope.get("root_path") == "/static" else "none"


def add_metrics(app: FastAPI, metrics: Metrics, collector: Collector) -> None:
    """Let `app` answer `GET /metrics` with its own metrics and with what the collector finds."""
    metrics.registry.register(collector)

    # No coroutine: it waits for Redis, in a thread of its own.
    def page() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.add_api_route("/metrics", page, methods=["GET"], tags=["health"], name="metrics", response_class=Response)
