"""Limits on connections: their number, and the time that a client may keep one waiting.

uvicorn itself limits only the silence between two requests. The time for a request's body is limited by endpoints
(`bodies`, `uploads`), the time for its headers and for taking the answer here.
"""

import asyncio
from dataclasses import dataclass
from typing import ClassVar

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dearkd.open_files import allow_open_files
from dearkd.settings import Settings
from dearkd_api.problems import problem

SPARE = 64
"""Connections over the limit that are answered 503; any more are closed without an answer."""
OTHER_FILES = 256
"""Open files of the server other than connections."""
MIN_SENT_BYTES = 2**16
"""The bytes of an answer that a client must take within `send_seconds`. So few, because the kernel frees its send
buffer in pieces of up to 1 MiB."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    max_connections: int
    header_seconds: float
    """Time from the start of the connection, or the end of the answer before, to the end of a request's headers."""
    send_seconds: float
    """Time within which a client must take `MIN_SENT_BYTES` of an answer."""

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionLimits":
        return cls(settings.max_connections, settings.header_seconds, settings.send_seconds)

    @property
    def check_seconds(self) -> float:
        """Time between two checks of a connection."""
        return min(1.0, self.header_seconds / 4, self.send_seconds / 4)


class Connection(H11Protocol):
    """A connection that is closed if its client sends no request in time, or does not take its answer.

    With too many connections, a new one takes the place of the one that has waited longest for its client, for headers
    or for a body: so clients that open connections and fall silent keep nobody out.
    """

    limits: ClassVar[ConnectionLimits]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._heard = self._free_since = self.loop.time()
        self._unsent = 0
        self._stuck: tuple[float, int] | None = None
        """Start of the wait for the client to take `MIN_SENT_BYTES`, and the bytes unsent then; None: no wait."""
        if len(self.connections) > self.limits.max_connections:
            self._make_room()
        self._next_check = self.loop.call_later(self.limits.check_seconds, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._next_check.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self._free_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "Not HTTP", "this is no valid HTTP/1.1 request", "bad_request")

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _waits_for_client(self) -> bool:
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            return False
        if not self._answering:
            return True
        cycle = self.cycle
        return cycle.more_body and not cycle.response_started and not cycle.body and not self.flow.read_paused

    def _make_room(self) -> None:
        others = (one for one in self.connections if isinstance(one, Connection) and one is not self)
        idle = min((one for one in others if one._waits_for_client), key=lambda one: one._heard, default=None)
        if idle is not None:
            idle.transport.abort()
        elif len(self.connections) <= self.limits.max_connections + SPARE:
            self.app = _refuse_crowd
        else:
            self.transport.abort()

    def _check(self) -> None:
        now = self.loop.time()
        self._next_check = self.loop.call_later(self.limits.check_seconds, self._check)
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            if self._stuck is None or unsent > self._unsent:  # more was written, for which there had to be room
                self._stuck = now, unsent
            elif now - self._stuck[0] > self.limits.send_seconds:
                if self._stuck[1] - unsent < MIN_SENT_BYTES:
                    self.transport.abort()
                self._stuck = now, unsent
        else:
            self._stuck = None
            if not self._answering and now - self._free_since > self.limits.header_seconds:
                if self._heard > self._free_since:
                    detail = f"no request came within {self.limits.header_seconds:g} s (DEARKD_HEADER_SECONDS)"
                    self._refuse(408, "Too slow", detail, "too_slow")
                else:
                    self.transport.close()
        self._unsent = unsent

    def _refuse(self, status: int, title: str, detail: str, code: str) -> None:
        """Answer an incomplete or invalid request, and close; only close if an answer has begun."""
        answer = problem(status, title, detail, code, headers={"Connection": "close"})
        head = h11.Response(status_code=status, headers=answer.raw_headers)
        try:
            events = (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        except h11.LocalProtocolError:  # in the middle of an answer, or behind one
            self.transport.abort()
        else:
            self.transport.close()


async def _refuse_crowd(scope: Scope, receive: Receive, send: Send) -> None:
    detail = "as many connections as this server has (DEARKD_MAX_CONNECTIONS) are busy: try again later"
    answer = problem(503, "Too many connections", detail, "too_many_connections", headers={"Connection": "close"})
    await answer(scope, receive, send)


def connection_class(limits: ConnectionLimits) -> type[Connection]:
    """The protocol class for uvicorn under these limits; raises the process's limit on open files to fit."""
    allow_open_files(limits.max_connections + SPARE + OTHER_FILES)
    return type("BoundConnection", (Connection,), {"limits": limits})
