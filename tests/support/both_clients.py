"""The client that blocks and the asynchronous one, called alike, so that a test is of both."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

from dearkd.client import AsyncClient, Client

Way = Literal["blocking", "asyncio"]
WAYS: tuple[Way, ...] = ("blocking", "asyncio")


class OnALoop:
    """An `AsyncClient` whose calls run to their end on an event loop of its own."""

    def __init__(self, runner: asyncio.Runner, client: AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            outcome = method(*arguments, **named)
            return self._runner.run(outcome) if inspect.iscoroutine(outcome) else self._items(outcome)

        return call

    def _items(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(items, self)

        while (item := self._runner.run(following())) is not self:
            yield item


@contextmanager
def connected(way: Way, url: str, api_key: str | None = None) -> Iterator[Client]:
    """A client of that kind; to the types both are a `Client`."""
    if way == "blocking":
        with Client(url, api_key) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        awaited = AsyncClient(url, api_key)
        yield cast(Client, OnALoop(runner, awaited))
        runner.run(awaited.close())
