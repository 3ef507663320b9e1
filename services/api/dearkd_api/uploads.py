"""Uploads: bodies streamed by a few worker threads, from clients that must keep up a minimum rate."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import anyio.from_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from dearkd.errors import TooSlow, Unavailable
from dearkd_api.backend import UPLOADS_AT_ONCE, Backend
from dearkd_api.bodies import require_declared_size, require_size

FIRST_BYTES = 2**16
"""The bytes of an upload (or all, if fewer) that must have come before it takes one of the few places."""


class Upload:
    """A request's body, with limits on its size and on its slowness.

    Args:
        request: its body has not been read.
        backend: its settings bound the rate.
        max_bytes: of the body; by default `max_upload_bytes`.

    Raises:
        TooLarge: here and while it is read, if it is over `max_bytes`.
    """

    def __init__(self, request: Request, backend: Backend, *, max_bytes: int | None = None) -> None:
        self._request = request
        self._backend = backend
        self._max_bytes = max_bytes or backend.settings.max_upload_bytes
        require_declared_size(request, self._max_bytes)
        self._first = bytearray()
        self._received = 0
        self._more = True
        self._waited = 0.0
        self._came = 0

    async def begin(self) -> None:
        """Wait for its first `FIRST_BYTES`. Raises as `chunks` does."""
        while self._more and len(self._first) < FIRST_BYTES:
            self._first += await self._next()

    def chunks(self) -> Iterator[bytes]:
        """All chunks of the body; for a worker thread of anyio.

        Raises:
            TooLarge: see above.
            TooSlow: if less than `min_upload_rate` came while it was waited for.
            Unavailable: if the server is stopping.
        """
        yield bytes(self._first)
        self._first.clear()
        while self._more:
            yield anyio.from_thread.run(self._next)

    async def _next(self) -> bytes:
        settings = self._backend.settings
        clock = asyncio.get_running_loop().time
        while True:
            if self._backend.stopping.is_set():
                raise Unavailable("the server is being stopped; send this again to its successor", code="stopping")
            message = None
            begin = clock()
            with anyio.move_on_after(min(1.0, settings.upload_rate_seconds / 4)):
                message = await self._request.receive()
            if message is not None and message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"") if message is not None else b""
            self._more = message is None or message.get("more_body", False)
            self._count(clock() - begin, len(chunk))
            if message is not None:
                return chunk

    def _count(self, waited: float, came: int) -> None:
        """Count bytes and the seconds of waiting for the client, not for storage; refuse what is too large or slow."""
        settings = self._backend.settings
        self._received += came
        require_size(self._received, self._max_bytes)
        self._waited += waited
        self._came += came
        if self._more and self._waited >= settings.upload_rate_seconds:
            if self._came < settings.min_upload_rate * self._waited:
                raise TooSlow(
                    f"{self._came} bytes of the upload came in {self._waited:.0f} s, after {self._received} in all: "
                    f"this server wants {settings.min_upload_rate} a second (DEARKD_MIN_UPLOAD_RATE)"
                )
            self._waited, self._came = 0.0, 0


@asynccontextmanager
async def upload_place(backend: Backend) -> AsyncIterator[None]:
    """Hold one of the places while the block runs.

    Raises:
        Unavailable: `busy`, if none becomes free within `upload_wait_seconds`.
    """
    seconds = backend.settings.upload_wait_seconds
    try:
        async with asyncio.timeout(seconds):
            await backend.upload_places.acquire()
    except TimeoutError:
        raise Unavailable(
            f"{UPLOADS_AT_ONCE} uploads are being received, and none ended within {seconds:g} s: try again later",
            code="busy",
        ) from None
    try:
        yield
    finally:
        backend.upload_places.release()
