"""The log of a process: lines on stderr, as text for people or as JSON for programs, with what each is about.

What a line is about (a request, a unit of a job) is said once, by `about`, and not in each message.
"""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from dearkd import tracing
from dearkd.names import printable
from dearkd.settings import Settings

_about: ContextVar[dict[str, str | int]] = ContextVar("about")

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_about(**fields: str | int) -> None:
    """Say what all further lines of this task or thread are about, beside what was said before."""
    _about.set(_about.get({}) | fields)


@contextmanager
def about(**fields: str | int) -> Iterator[None]:
    """Say what the lines inside are about: `request_id`, `job_id`, `unit`, `attempt` and the like."""
    token = _about.set(_about.get({}) | fields)
    try:
        yield
    finally:
        _about.reset(token)


class _AboutFilter(logging.Filter):
    """Puts on each record what it is about, and its span; where it is written, that may not be known any more."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.about = _about.get({}) | tracing.ids()
        return True


class PrintableFormatter(logging.Formatter):
    """Writes each record on a line of its own, whatever names, paths and headers its message holds.

    A traceback keeps its lines. Of what a record is about the id of its request is shown: messages name their job.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        request = getattr(record, "about", {}).get("request_id")
        return super().formatMessage(record) + (f" (request {request})" if request else "")

    def formatException(self, ei: Any) -> str:
        return printable(super().formatException(ei), keep="\n")


class JsonFormatter(logging.Formatter):
    """Writes each record as a JSON object on one line, in ASCII; a traceback is one of its values."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr(settings: Settings) -> None:
    """Let this process log to stderr as `DEARKD_LOG_LEVEL` and `DEARKD_LOG_FORMAT` say, a line a record.

    As JSON, also what Python itself would print there: warnings, and what ended a thread.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_AboutFilter())
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
        logging.captureWarnings(True)
        threading.excepthook = _log_end_of_thread
    else:
        handler.setFormatter(PrintableFormatter(TEXT))
    logging.basicConfig(level=settings.log_level, handlers=[handler])


def _log_end_of_thread(end: threading.ExceptHookArgs) -> None:
    if end.exc_value is not None and not isinstance(end.exc_value, SystemExit):
        name = end.thread.name if end.thread else "unknown"
        logging.getLogger(__name__).error(
            "the thread %s ended", name, exc_info=(end.exc_type, end.exc_value, end.exc_traceback)
        )
