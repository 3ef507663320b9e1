"""JSON bodies: read within bounds, parsed strictly, and validated by FastAPI as the requests that routes declare."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Annotated, Any, Generic, TypeVar, get_args

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from dearkd.errors import InvalidInput, TooLarge, TooSlow
from dearkd.identifiers import new_id
from dearkd.jobs.idempotency import Turn
from dearkd.specs import Spec
from dearkd_api.idempotency import answer_once, fingerprint_of
from dearkd_api.queries import require_known_parameters

RequestT = TypeVar("RequestT", bound=Spec)

MAX_DIGITS = 1000
"""Digits of a whole number that is read at the most. No field takes as many; Python shows no number of more than 4300,
and what is computed from such a one before it is refused is longer than that."""

REMEDIES = {
    "teacher": "POST /v1/teachers first",
    "dataset": "name a dataset, or the synthesis job that makes one",
}
"""The remedy where a request does not name a resource that it needs, by field."""


class BoundedRequest(Request):
    """A request whose body has a bounded size, and comes in bounded time."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            settings = self.app.state.backend.settings
            require_declared_size(self, settings.max_body_bytes)
            body = bytearray()
            try:
                async with asyncio.timeout(settings.body_seconds):
                    async for chunk in self.stream():
                        body += chunk
                        require_size(len(body), settings.max_body_bytes)
            except TimeoutError:
                raise TooSlow(
                    f"the body did not come within {settings.body_seconds:g} s (DEARKD_BODY_SECONDS), only {len(body)} "
                    "bytes of it"
                ) from None
            self._body = bytes(body)
        return self._body


class JsonRequest(BoundedRequest):
    """A bounded request whose body is a JSON object."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            value = parse_json(await self.body())
            if not isinstance(value, dict):
                raise InvalidInput.at("", f"expected a JSON object, got {type(value).__name__}")
            self._json = value
        return self._json


class JsonRoute(APIRoute):
    """A route whose body, where it declares one, is a JSON object; FastAPI alone would read it without bounds."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            if self.body_field is not None:
                await require_known_parameters(request)  # before the body, which need not be read then
                request = JsonRequest(request.scope, request.receive)
                if await request.body() or self.body_field.field_info.is_required():
                    await request.json()  # before FastAPI does, which answers 400 to any error there
            if not self._creates or "dry_run" in request.query_params:
                return await handle(request)
            content = await request.json() if await request.body() else None

            async def make(turn: Turn) -> Response:
                request.state.turn = turn
                return await handle(request)

            return await answer_once(request, request.app.state.backend, fingerprint_of(request, content), make)

        return read_and_handle

    @property
    def _creates(self) -> bool:
        """True if the route declares an `Idempotency-Key`."""
        return any(field.alias == "Idempotency-Key" for field in self.dependant.header_params)


async def _turn(request: Request) -> Turn:
    turn: Turn = getattr(request.state, "turn", None) or Turn("new", new_id("tmp"))
    return turn


ThisTurn = Annotated[Turn, Depends(_turn)]
"""The turn of a request to a route of `JsonRoute`: the id that what it makes is to have."""


class Posted(Generic[RequestT]):
    """A body that a route gets even if it breaks rules, so that one answer can also name its wrong references.

    If `refusal` is None, `request` is valid; else `refusal` names the broken rules, and the fields that break one are
    None in `request`.
    """

    def __init__(self, request: RequestT, refusal: InvalidInput | None = None) -> None:
        self.request = request
        self.refusal = refusal

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        (model,) = get_args(source)

        def validate(value: Any, into_model: Callable[[Any], RequestT]) -> "Posted[RequestT]":
            try:
                return cls(into_model(value))
            except ValidationError as error:
                wrong = {place for found in error.errors() for place in found["loc"][:1]}
                told = [_with_remedy(found) for found in error.errors(include_url=False)]
                known = {name: value.get(name) for name in model.model_fields if name not in wrong}
                return cls(
                    model.model_construct(**dict.fromkeys(model.model_fields) | known),
                    InvalidInput.from_details(told),
                )

        return core_schema.no_info_wrap_validator_function(validate, handler.generate_schema(model))


def _with_remedy(error: Mapping[str, Any]) -> Mapping[str, Any]:
    """An entry of `ValidationError.errors()`; null for a resource that is needed is as if it were left out."""
    remedy = REMEDIES.get(error["loc"][0]) if len(error["loc"]) == 1 else None
    if remedy is None or not (error["type"] == "missing" or error["input"] is None):
        return error
    return {**error, "type": "missing", "remedy": remedy}


def require_declared_size(request: Request, limit: int) -> None:
    """Refuse a body whose Content-Length is over the limit, before anything is read. Raises `TooLarge`."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        require_size(int(declared), limit)


def require_size(size: int, limit: int) -> None:
    if size > limit:
        raise TooLarge(f"the body has {size} bytes or more; this server allows {limit}")


def parse_json(data: bytes, *, pointer: str = "") -> Any:
    """Parse a JSON value.

    Raises:
        InvalidInput: at `pointer`, if it is not JSON, as NaN and Infinity are not, or has a number beyond all bounds.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON number")

    def whole(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise ValueError(f"a number of {len(digits)} digits, and {MAX_DIGITS} are the most")
        return int(digits)

    try:
        return json.loads(data, parse_constant=refuse, parse_int=whole)
    except (ValueError, RecursionError) as error:
        raise InvalidInput.at(pointer, f"not readable as JSON: {error or 'nested too deeply'}") from None


class ErrorCollector:
    """Collects the broken rules of several checks, so that one answer names them all.

    `with errors:` catches an `InvalidInput` raised in the block and keeps it.
    """

    def __init__(self, refusal: InvalidInput | None = None) -> None:
        self._found = [] if refusal is None else [refusal]

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(value, InvalidInput):
            return False
        self._found.append(value)
        return True

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self) -> None:
        """Raise one `InvalidInput` with all that were collected, if there are any."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            errors = [error for found in self._found for error in found.errors]
            raise InvalidInput("; ".join(found.message for found in self._found), errors=errors)
