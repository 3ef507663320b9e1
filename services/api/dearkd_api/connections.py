"""Connections: how long a client may keep one waiting, and how many there may be at once.

uvicorn bounds none of this but silence between two requests. What a request's body may take is the endpoint's affair
(`bodies`, `uploads`); here is what happens before, after and beside an endpoint.
"""

import asyncio
import resource
from dataclasses import dataclass
from typing import ClassVar

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dearkd.settings import Settings
from dearkd_api.problems import problem

SPARE = 64
"""Connections over the limit that are answered 503; any more are closed without a word."""
OTHER_FILES = 256
"""Open files of the server that are no connections."""
MIN_SENT_BYTES = 2**16
"""What a client must take of an answer within `send_seconds`. The kernel hands out room in pieces of up to a MiB, so
that little can be asked in a short time."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    max_connections: int
    header_seconds: float
    """From the connection's begin, or the end of the answer before, to the end of a request's headers."""
    send_seconds: float

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionLimits":
        return cls(settings.max_connections, settings.header_seconds, settings.send_seconds)

    @property
    def look_seconds(self) -> float:
        """Between two looks at a connection."""
        return min(1.0, self.header_seconds / 4, self.send_seconds / 4)


class Connection(H11Protocol):
    """A connection that ends where its client sends no request in time, or takes nothing of an answer.

    Where there are too many, a new one takes the place of that which has waited longest for its client, be it for
    headers or for a body: so those who open connections and fall silent keep nobody out.
    """

    limits: ClassVar[ConnectionLimits]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._heard = self._free_since = self.loop.time()
        self._unsent = 0
        self._stuck: tuple[float, int] | None = None
        """Since when what is to be sent did not become less by much, and how much it was then."""
        if len(self.connections) > self.limits.max_connections:
            self._make_room()
        self._looking = self.loop.call_later(self.limits.look_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
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

    def _look(self) -> None:
        now = self.loop.time()
        self._looking = self.loop.call_later(self.limits.look_seconds, self._look)
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
        """Answer what is no whole request, and close; where an answer is under way or was given, only close."""
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
    """What uvicorn makes of each connection under these limits; raises the process's limit on open files to fit."""
    wanted = limits.max_connections + SPARE + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
    return type("BoundConnection", (Connection,), {"limits": limits})
