"""The thread that hears of events in Redis, for all streams of an API."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, cast

from dearkd.errors import LimitReached, Unavailable
from dearkd.jobs.records import EVENTS, JobRecords

STREAMS_AT_ONCE: Final = 128
OUTAGE_SECONDS: Final = 1.0
ENTRIES_AT_ONCE: Final = 200

log = logging.getLogger(__name__)


class EventListener:
    """Wakes the streams of an API when there are events: one thread reads for all of them, from the first on."""

    def __init__(self, records: JobRecords, stopping: threading.Event) -> None:
        self._records = records
        self._stopping = stopping
        self._waiting: dict[asyncio.Event, str | None] = {}
        self._thread: threading.Thread | None = None

    def require_place(self) -> None:
        """Raises `LimitReached` (`too_many_streams`) if as many streams are open as may be."""
        if len(self._waiting) >= STREAMS_AT_ONCE:
            raise LimitReached(
                f"{STREAMS_AT_ONCE} streams of events are open: close one, or poll with ?wait=", code="too_many_streams"
            )

    @contextmanager
    def subscribed(self, job: str | None) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set when the job, or any with None, has new ones."""
        bell = asyncio.Event()
        self._waiting[bell] = job
        if self._thread is None or not self._thread.is_alive():
            arguments = (asyncio.get_running_loop(),)
            self._thread = threading.Thread(target=self._listen, args=arguments, name="events", daemon=True)
            self._thread.start()
        try:
            yield bell
        finally:
            del self._waiting[bell]

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        last: str | None = None
        while not self._stopping.is_set():
            try:
                last = last or self._records.last_event()
                found = self._records.redis.xread({EVENTS: last}, block=1000, count=ENTRIES_AT_ONCE)
            except Unavailable as error:
                log.info("streams of events wait: %s", error)
                self._stopping.wait(OUTAGE_SECONDS)
                continue
            for _, rows in cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", found):
                last = rows[-1][0].decode()
                jobs = {values[b"job"].decode() for _, values in rows}
                loop.call_soon_threadsafe(self._ring, jobs)

    def _ring(self, jobs: set[str]) -> None:
        for bell, job in self._waiting.items():
            if job is None or job in jobs:
                bell.set()
