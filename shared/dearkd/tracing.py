"""Traces in OpenTelemetry's form of what this process does, where its environment asks for them (`OTEL_…`).

An exporter asks for them, or an endpoint of OTLP; the SDK itself reads all other variables of the standard. Without
them, or without the extra `otel`, nothing of it is imported here, and every function here does nothing. A thread
sends the spans, and no thread survives a fork: so it is begun in the process that does the work, and ended with it.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, ClassVar, Final, Literal

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 2.0
"""The time for which the end of a process waits for its last spans to be taken."""
AWAY_SECONDS: Final = 10.0
"""The time for which a collector counts as away that an exporter has complained of; then nobody waits for it."""
QUIET_SECONDS: Final = 60.0
"""The time between two lines about a collector that takes nothing."""

Attributes = Mapping[str, str | bool | int | float | list[str]]
Role = Literal["internal", "server", "consumer"]

_OTLP: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""Protocols of OTLP, and the names under which packages offer an exporter for each."""

_tracer: "Tracer | None" = None


def warn_of_missing() -> None:
    """Tell the log, once for all that a program starts, if no package here exports what the environment asks for."""
    if lacking := [name for name in _asked() if _exporter(name) is None]:
        log.warning(
            "no traces are sent: the environment (OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_ENDPOINT) asks for %s, but "
            "no package here brings that: pip install 'dearkd[otel]' brings otlp_proto_http (OTLP over HTTP); or unset "
            "these variables",
            ", ".join(lacking),
        )


def preload() -> None:
    """Import what `exporting` needs, where it is asked for, so that processes forked from this one need not."""
    with suppress(Exception):  # `exporting` says what it is
        for exporter in _exporters():
            import_module("opentelemetry.sdk.trace.export")
            exporter.load()


@contextmanager
def exporting(service: str) -> Iterator[None]:
    """Send the spans of this process for as long as the block runs, where that is asked for and can be done.

    Nothing in the block waits for a collector, or fails for one. The block's end waits for the last spans to be taken,
    for `FLUSH_SECONDS` at most, and not for a collector that is known to be away.

    Args:
        service: the name of what this process is, where the environment gives none.
    """
    global _tracer
    provider = _provider(service)
    if provider is None:
        yield
        return
    _Complaints.last = -math.inf  # of a block before this one
    _tracer = provider.get_tracer("dearkd")
    try:
        yield
    finally:
        _tracer = None
        # In a thread, since what the SDK takes for a bound is none while an exporter waits for an answer.
        ending = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
        ending.start()
        until = time.monotonic() + FLUSH_SECONDS
        while ending.is_alive() and _Complaints.last + AWAY_SECONDS < time.monotonic() < until:
            ending.join(0.02)
        if ending.is_alive():
            log.warning("the last spans of this process were not taken: they are lost")


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    role: Role = "internal",
    parent: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Trace the block as a span, below that of the block around it. What the block raises marks it, if it is a fault.

    Args:
        name: of the span, one of a few.
        attributes: of the span.
        role: of the span among those of other processes.
        parent: `traceparent` and `tracestate`, as W3C's Trace Context has them, of a span of another process that this
            one is below. Empty, or not as they should be: of none.
    """
    if _tracer is None:
        yield
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    with _tracer.start_as_current_span(
        name,
        context=None if parent is None else TraceContextTextMapPropagator().extract(parent),
        kind=SpanKind[role.upper()],
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield
        except Exception as error:
            if getattr(error, "is_fault", True):
                current.record_exception(error)
                fail(str(getattr(error, "code", type(error).__qualname__)), str(error))
            raise


def span_since(began: int, name: str, attributes: Attributes) -> None:
    """Trace what went on from a moment (`time.time_ns`) until now, below the span of the block around this."""
    if _tracer is not None:
        _tracer.start_span(name, start_time=began, attributes=attributes).end()


def annotate(attributes: Attributes, *, name: str | None = None) -> None:
    """Add attributes to the span of the block around this, and give it another name if there is one."""
    if (current := _current()) is not None:
        current.set_attributes(attributes)
        if name is not None:
            current.update_name(name)


def fail(kind: str, message: str = "") -> None:
    """Say that what the span of the block around this is about failed.

    Args:
        kind: of error, one of a few: a `code` of ours, or the name of an exception.
        message: the reason why.
    """
    if (current := _current()) is not None:
        from opentelemetry.trace import StatusCode

        current.set_attribute("error.type", kind)
        current.set_status(StatusCode.ERROR, message or None)


def traceparent() -> str | None:
    """The span of the block around this, for another process to go on from, as W3C's Trace Context has it."""
    if _current() is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def ids() -> dict[str, str]:
    """`trace_id` and `span_id` of the block around this, in hexadecimal digits; empty where there is no span."""
    current = _current()
    context = current.get_span_context() if current is not None else None
    if context is None or not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _current() -> "Span | None":
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    return get_current_span()


# --- what the environment asks for ------------------------------------------------------------------------------------


def _asked() -> list[str]:
    """The exporters that are asked for, by the names under which packages offer them."""
    if _variable("OTEL_SDK_DISABLED").lower() == "true":
        return []
    endpoint = _variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    protocol = _variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    names = _variable("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    asked = [name.strip() for name in names.split(",")]
    return [_OTLP.get(protocol, protocol) if name == "otlp" else name for name in asked if name not in ("", "none")]


def _variable(*names: str) -> str:
    """The first of these variables that is not empty, which is as if it were not set."""
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _exporter(name: str) -> EntryPoint | None:
    return next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)


def _exporters() -> list[EntryPoint]:
    """The exporters that are asked for and there; none if one of them is not there."""
    asked = _asked()
    found = [exporter for name in asked if (exporter := _exporter(name)) is not None]
    return found if len(found) == len(asked) else []


def _provider(service: str) -> "TracerProvider | None":
    """The SDK, which begins its threads; None where nothing is to be sent, or cannot be."""
    try:
        if not (exporters := _exporters()):
            return None
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from dearkd import __version__

        own = {"service.name": service, "service.version": __version__, "process.pid": os.getpid()}
        # What the environment says comes before what is said here.
        resource = Resource.create(own).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for exporter in exporters:
            logging.getLogger(exporter.module).addFilter(_Complaints())
            provider.add_span_processor(BatchSpanProcessor(exporter.load()()))
        return provider
    except Exception as error:  # whatever is wrong with packages or variables that are not ours
        log.warning("no traces are sent: %s: %s", type(error).__name__, error)
        return None


class _Complaints(logging.Filter):
    """Lets one line in `QUIET_SECONDS` through: of a collector that is away an exporter tells again and again."""

    last: ClassVar[float] = -math.inf
    """The time of the last line of any exporter of this process."""

    _until = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        now = _Complaints.last = time.monotonic()
        if now < self._until:
            return False
        self._until = now + QUIET_SECONDS
        return True
