"""The inspector: does what the API cannot, without torch or for its length. See `dearkd.jobs.inspections`."""

import errno
import logging
import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from rq.timeouts import JobTimeoutException

from dearkd.errors import DearKDError, Unavailable
from dearkd.identifiers import is_id
from dearkd.jobs.deaths import is_near_limit
from dearkd.jobs.inspections import Inspections, Ticket, too_large_to_inspect, upload_prefix
from dearkd.jobs.queue import TIMEOUT_SECONDS
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision.check_inspection import check_on_dataset
from dearkd.vision.prediction_inspection import answer_prediction
from dearkd.vision.registration import register_dataset, register_teacher

log = logging.getLogger(__name__)

_NO_MEMORY = re.compile(r"allocate memory|out of memory|memory allocation|start new thread", re.IGNORECASE)
"""Words of torch, Pillow, the C library, Rust and Python."""


def inspect(identifier: str) -> None:
    """Do what the ticket of that id asks for, and answer on the ticket.

    Never raises for what is wrong with the thing itself: that is the answer.
    """
    settings = Settings()
    redis = connect(settings)
    storage = Storage.open(settings, redis)
    inspections = Inspections(redis, storage)
    ticket = inspections.take(identifier, settings)
    if ticket is None:
        standing = inspections.get(identifier)
        if standing is None or not standing.under_way:
            storage.delete_prefix(upload_prefix(identifier))
        return
    refusal: DearKDError | None = None
    result: dict[str, Any] | None = None
    with inspections.inspecting(ticket, settings):
        try:
            with _ending_cleanly():
                result = _perform(ticket, storage, settings, partial(inspections.step, ticket))
        except Exception as error:
            refusal = _refusal_of(error, ticket, settings)
    inspections.close(ticket, refusal, result=result)


def _perform(ticket: Ticket, storage: Storage, settings: Settings, step: Callable[[], None]) -> dict[str, Any] | None:
    """Do what a ticket asks for, by the kind of its id; returns the answer to a question."""
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    with FileCache(settings.cache_dir, settings.cache_bytes) as cache, cache.scratch("inspection") as folder:
        if is_id(ticket.id, "tch"):
            register_teacher(ticket, storage, folder)
        elif is_id(ticket.id, "ds"):
            register_dataset(ticket, storage, folder, step)
        elif is_id(ticket.id, "chk"):
            return check_on_dataset(ticket, storage, cache, step)
        else:
            return answer_prediction(ticket, storage, cache, folder)
    return None


def _refusal_of(error: Exception, ticket: Ticket, settings: Settings) -> DearKDError:
    """The error as it is told to who asked."""
    unexpected = not isinstance(error, DearKDError | JobTimeoutException)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    if _ran_out_of_memory(error) or (unexpected and is_near_limit(usage, settings.inspect_memory_bytes)):
        log.info("inspecting %s", ticket.id, exc_info=error)
        return too_large_to_inspect(ticket, "inspecting it takes more memory than is allowed")
    if isinstance(error, JobTimeoutException):
        return too_large_to_inspect(ticket, f"inspecting it takes longer than {TIMEOUT_SECONDS['inspect']} s")
    if isinstance(error, DearKDError):
        return error
    log.error("inspecting %s", ticket.id, exc_info=error)
    return DearKDError(
        f"the inspector failed unexpectedly ({type(error).__name__}); its log says more", code="internal_error"
    )


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error is one of missing memory, or its consequence."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if full or isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Let SIGTERM end the inspection as a refusal that says so, so that nothing half-done stays."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise Unavailable("the inspector was asked to end before it was done: try again", code="stopping")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
