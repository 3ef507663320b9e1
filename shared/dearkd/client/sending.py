"""Requests to the API: tried again where they may be, and their answers read as what they are."""

import json
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from dearkd.answers import StoredPage
from dearkd.client.problems import no_api, raise_for_status
from dearkd.client.transport import Transport
from dearkd.errors import DearKDError, LimitReached, Unavailable, json_pointer
from dearkd.jobs.model import Event
from dearkd.names import printable

log = logging.getLogger(__name__)

ModelT = TypeVar("ModelT", bound=BaseModel)

RETRY_PAUSES = (0.1, 0.3, 0.9)
"""Seconds between the tries of a request that met a broken connection or a 503, or a 429 where it creates something."""
LONGEST_PAUSE = 5.0
"""The most seconds that an answer's `Retry-After` is waited for."""
STREAM_SILENCE_SECONDS = 45.0
"""A stream of events that brings nothing for so long, not even one of its beats, is broken."""
FINAL = frozenset({"inspector_unavailable", "timeout"})
"""Codes of errors that the next seconds do not change."""
PAGE = 50


async def sent(
    transport: Transport, method: str, path: str, *, retried: bool = False, **arguments: Any
) -> httpx.Response:
    """An answer that is no error.

    Args:
        transport: to the API.
        method, path: of the request.
        retried: True if it may be sent again; a GET or HEAD always may.
        arguments: httpx's.

    Raises:
        Unavailable, LimitReached: if that does not end within a few tries.
        DearKDError: what else an answer means.
    """
    pauses = iter(RETRY_PAUSES if retried or method in ("GET", "HEAD") else ())
    while True:
        asked = 0.0
        try:
            response = await transport.send(method, path, **arguments)
            asked = _asked_pause(response) if retried else 0.0
            raise_for_status(response)
        except (Unavailable, LimitReached) as error:
            pause = next(pauses, None)
            if pause is None or error.code in FINAL or (isinstance(error, LimitReached) and not retried):
                raise
            await transport.sleep(max(pause, asked))
        else:
            return response


class Sender:
    """Ways to ask an API for models."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def url(self) -> str:
        """The API's URL."""
        return self._transport.url

    async def _object(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        response = await sent(self._transport, method, path, **arguments)
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise no_api(self.url, f"{method} {path} answered {response.status_code} without a JSON object")
        return value

    async def _get(self, model: type[ModelT], path: str, **arguments: Any) -> ModelT:
        return self._read(model, await self._object("GET", path, **arguments))

    async def _post(self, model: type[ModelT], path: str, **arguments: Any) -> ModelT:
        return self._read(model, await self._object("POST", path, **arguments))

    async def _created(self, path: str, **arguments: Any) -> dict[str, Any]:
        """POST what creates something, with an `Idempotency-Key`: so it may be sent again, and creates it once."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return await self._object("POST", path, retried=True, headers=headers, **arguments)

    async def _create(self, model: type[ModelT], path: str, **arguments: Any) -> ModelT:
        return self._read(model, await self._created(path, **arguments))

    async def _pages(self, model: type[ModelT], path: str, **params: str | None) -> AsyncIterator[ModelT]:
        """The items of a collection, a page at a time, for as long as the caller asks for more."""
        query = {key: value for key, value in params.items() if value is not None} | {"limit": str(PAGE)}
        while True:
            page = self._read(StoredPage[Any], await self._object("GET", path, params=query))
            for unread in page.unreadable:
                log.warning("%s is not listed: %s", printable(unread.id), printable(unread.reason))
            for item in page.data:
                yield self._read(model, item)
            if not page.has_more:
                return
            query["after"] = str(page.data[-1]["id"])

    async def _event_stream(self, path: str, after: str | None) -> AsyncGenerator[Event | None]:
        """Server-sent events of one connection, behind the id `after`; None for a beat."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after is not None else {})
        timeout = httpx.Timeout(connect=5, read=STREAM_SILENCE_SECONDS, write=5, pool=5)
        async with self._transport.stream("GET", path, headers=headers, timeout=timeout) as answer:
            if answer.response.is_error:
                await answer.read()
            raise_for_status(answer.response)
            data: list[str] = []
            async for line in answer.lines():
                if line.startswith("data:"):
                    data.append(line.removeprefix("data:").removeprefix(" "))
                elif line.startswith(":"):
                    yield None
                elif not line and data:
                    yield self._read(Event, json.loads("\n".join(data)))
                    data = []

    def _read(self, model: type[ModelT], value: Any) -> ModelT:
        """The model of an answer. Fields that it does not have are ignored: a newer server may send them."""
        try:
            return model.model_validate(value)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False)[0]
            raise DearKDError(
                f"{self.url} answered with a {model.__name__} that this version of dearkd cannot read "
                f"({json_pointer(wrong['loc'])}: {wrong['msg']}): install the server's version here",
                code="unreadable_answer",
            ) from None


def _asked_pause(response: httpx.Response) -> float:
    """The seconds of a `Retry-After`, up to `LONGEST_PAUSE`; 0 without one."""
    said = response.headers.get("retry-after", "")
    return min(float(said), LONGEST_PAUSE) if said.isdecimal() else 0.0
