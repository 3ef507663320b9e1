"""Events of jobs, as JSON pages and as server-sent events (WHATWG HTML, section 9.2).

A stream begins behind `Last-Event-ID` (or `after`), beats where nothing happens, and ends by itself after ten minutes:
who listens on connects again, as browsers do by themselves, and misses nothing.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from dearkd.errors import InvalidInput, Unavailable
from dearkd.jobs.model import Event
from dearkd_api.access import Caller
from dearkd_api.answers import EventPage
from dearkd_api.backend import Backend, Uses
from dearkd_api.event_listener import OUTAGE_SECONDS
from dearkd_api.pages import DEFAULT_LIMIT, EVENT_ID, After, Limit, page

STREAM: Final = "text/event-stream"
STREAM_SECONDS: Final = 600.0
BEAT_SECONDS: Final = 15.0
RECONNECT_MILLISECONDS: Final = 2000
READ_AT_ONCE: Final = 200

Read = Callable[[str | None], tuple[list[Event], bool, str | None]]
"""Reads the events behind an id: those there are, whether there are more, and the id to go on behind."""

log = logging.getLogger(__name__)


def wants_stream(request: Request) -> bool:
    """Tell whether a client asks for server-sent events."""
    return STREAM in request.headers.get("accept", "").lower()


def check_id(text: str | None, pointer: str = "/after") -> str | None:
    """Raises `InvalidInput` if `text` is no id of an event."""
    if text is not None and not re.fullmatch(EVENT_ID, text):
        raise InvalidInput.at(pointer, f"{text!r:.80} is no id of an event; give the last one that you received")
    return text


def last_event_id(request: Request, after: str | None) -> str | None:
    """The id behind which a stream begins: what the client received last, or else `after`.

    Raises:
        InvalidInput: if it is no id of an event.
    """
    received = request.headers.get("last-event-id") or None
    return check_id(received, pointer="") if received is not None else check_id(after)


def stream(
    backend: Backend,
    read: Read,
    *,
    job: str | None,
    after: str | None,
    ended: Callable[[], bool] = lambda: False,
) -> Response:
    """Server-sent events, each with its id, its type as `event`, and its JSON as data.

    Args:
        backend: stops them when the server stops.
        read: reads them.
        job: that they are of; None: of all.
        after: the id to begin behind.
        ended: tells whether none will come any more.
    """

    async def events() -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        until = clock() + STREAM_SECONDS
        last = after
        with backend.listener.subscribed(job) as bell:
            yield format_sse_event(retry=RECONNECT_MILLISECONDS, comment="events")
            while clock() < until and not backend.stopping.is_set():
                bell.clear()
                try:
                    over = await run_in_threadpool(ended)  # before the events, of which the last says so
                    found, more, last = await run_in_threadpool(read, last)
                except Unavailable as error:
                    log.info("a stream of events waits: %s", error)
                    await asyncio.sleep(OUTAGE_SECONDS)
                    continue
                for event in found:
                    data = json.dumps(shown(event))
                    yield format_sse_event(id=event.id, event=event.type, data_str=data)
                if more:
                    continue
                if over:
                    return
                beat = clock() + BEAT_SECONDS
                while not bell.is_set() and clock() < min(beat, until) and not backend.stopping.is_set():
                    try:
                        async with asyncio.timeout(1.0):
                            await bell.wait()
                    except TimeoutError:
                        continue
                if not bell.is_set():
                    yield format_sse_event(comment="beat")

    backend.listener.require_place()  # here, where there is still a status to answer with
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return EventSourceResponse(events(), headers=headers)


router = APIRouter(prefix="/v1/events", tags=["events"])


@router.get("", response_model=EventPage)
async def events_of_all(
    request: Request, backend: Uses, caller: Caller, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Response:
    """The events of all jobs that the key may see: as they come (`Accept: text/event-stream`), or as a page.

    Each names its `job`. The latest ten thousand are kept. A stream that begins behind no id begins now.
    """

    def read(last: str | None, most: int = READ_AT_ONCE) -> tuple[list[Event], bool, str | None]:
        return backend.store.events_of_all(owner=caller, after=last, limit=most)

    if wants_stream(request):
        begin = last_event_id(request, after) or await run_in_threadpool(backend.store.last_event)
        return stream(backend, read, job=None, after=begin)
    found, more, last = await run_in_threadpool(read, check_id(after), limit)
    while more and not found:  # others' jobs alone
        found, more, last = await run_in_threadpool(read, last, limit)
    return JSONResponse(page([shown(event) for event in found], more))


def shown(event: Event) -> dict[str, Any]:
    return event.model_dump(mode="json", exclude={"job"} if event.job is None else None)
