"""`Idempotency-Key`: a request that creates something may be sent again, and creates it once."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from typing import Annotated, Any

import anyio
from fastapi import Header, Request, Response
from starlette.concurrency import run_in_threadpool

from dearkd.errors import DearKDError, InvalidInput, Unavailable
from dearkd.identifiers import new_id
from dearkd.jobs.idempotency import Answer, Turn, still_making
from dearkd_api.backend import Backend
from dearkd_api.keys import Identity

HEADER = "idempotency-key"
REPLAYED = "Idempotent-Replayed"
PAUSES = (0.02, 0.05, 0.1, 0.25, 0.5)
"""Seconds between two looks at whether the first answer is there; the last one again and again."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern="^[ -~]+$",
        description="A random text of your own, such as a UUID: the same request with it again is given the first "
        "answer, for 24 hours, and makes nothing new. Another request with it is refused (422).",
    ),
]
"""Declared by routes that create something; `JsonRoute` and the upload of teachers act on it."""


def fingerprint_of(request: Request, content: Any) -> str:
    """A digest of method, path, query and content (what JSON can hold), the same for the same request alone."""
    said = [request.method, request.url.path, sorted(request.query_params.multi_items()), content]
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def key_of(request: Request) -> str | None:
    """The request's key; None if it has none.

    Raises:
        InvalidInput: if it has several, or one that is empty, too long or not printable ASCII.
    """
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    if len(given) > 1:
        raise InvalidInput(f"there are {len(given)} Idempotency-Key headers: send one")
    if not re.fullmatch(r"[\x20-\x7e]{1,255}", given[0]):
        raise InvalidInput("an Idempotency-Key has 1 to 255 characters of printable ASCII, such as a random UUID")
    return given[0]


async def answer_once(
    request: Request,
    backend: Backend,
    fingerprint: str,
    make: Callable[[Turn], Awaitable[Response]],
    *,
    identifier: str | None = None,
    key: str | None = None,
) -> Response:
    """Make an answer, or give the one that the request's key was given first.

    What is refused is not kept: nothing was made, and the same request may succeed later. Where something fails in
    between, who asks again makes it, or finds it made, under the same id.

    Args:
        request: the request; without a key every one is a new one.
        backend: keeps the answers.
        fingerprint: `fingerprint_of` the request.
        make: makes the answer; what it creates has the id that it is given, of the kind that is wanted.
        identifier: the id that this is where nobody has begun before; by default a new one.
        key: that the request stands for, where it bears none in its headers.

    Raises:
        InvalidInput: `idempotency_key_reused`.
        Conflict: `idempotency_in_progress`, if the first request takes too long.
    """
    key = key or key_of(request)
    identifier = identifier or new_id("tmp")
    if key is None:
        return await make(Turn("new", identifier))
    identity: Identity | None = getattr(request.state, "identity", None)
    owner = identity.owner if identity else None
    seconds = backend.settings.inspect_seconds
    turn = await _turn(request, backend, owner, key, fingerprint, identifier)
    if turn.answer is not None:
        headers = {REPLAYED: "true"} | ({"Location": turn.answer.location} if turn.answer.location else {})
        return Response(turn.answer.body, turn.answer.status, headers, media_type="application/json")
    try:
        # A body that comes slowly has been read; what is left is bounded.
        async with asyncio.timeout(3 * seconds + 60):
            response = await make(turn)
    except BaseException as error:
        refused = isinstance(error, DearKDError) and not isinstance(error, Unavailable)
        # After an outage or a fault it may have been made all the same: who asks again gets the id that is settled.
        leave = backend.answers.withdraw if refused else backend.answers.give_up
        with anyio.CancelScope(shield=True), suppress(Unavailable):
            await run_in_threadpool(leave, owner, key)
        raise
    answer = Answer(
        status=response.status_code,
        location=response.headers.get("location"),
        body=bytes(response.body).decode(),
    )
    with anyio.CancelScope(shield=True):
        await run_in_threadpool(backend.answers.keep, owner, key, answer)
    return response


async def _turn(
    request: Request, backend: Backend, owner: str | None, key: str, fingerprint: str, identifier: str
) -> Turn:
    """The turn of a request, once nobody else makes the answer."""
    lease = 3 * backend.settings.inspect_seconds + 90
    until = asyncio.get_running_loop().time() + backend.settings.inspect_seconds
    pauses = iter(PAUSES)
    pause = 0.0
    while True:
        turn = await run_in_threadpool(backend.answers.claim, owner, key, fingerprint, identifier, seconds=lease)
        if turn.state != "making":
            return turn
        over = asyncio.get_running_loop().time() > until
        if over or backend.stopping.is_set() or await request.is_disconnected():
            raise still_making(key)
        pause = next(pauses, pause)
        await asyncio.sleep(pause)
