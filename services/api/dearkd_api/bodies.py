"""JSON bodies: read with a cap, parsed strictly, checked by the specs; and how the API's schema shows them."""

import asyncio
import json
from types import TracebackType
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel

from dearkd.errors import InvalidInput, TooLarge, TooSlow
from dearkd_api.backend import Uses


async def _read_body(request: Request, backend: Uses) -> bytes:
    limit = backend.settings.max_body_bytes
    require_declared_size(request, limit)
    body = bytearray()
    seconds = backend.settings.body_seconds
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                require_size(len(body), limit)
    except TimeoutError:
        raise TooSlow(
            f"the body did not come within {seconds:g} s (DEARKD_BODY_SECONDS), only {len(body)} bytes of it"
        ) from None
    return bytes(body)


_Body = Annotated[bytes, Depends(_read_body)]


async def _read_json(body: _Body) -> Any:
    return parse_json(body)


async def _read_optional_json(body: _Body) -> Any:
    return parse_json(body) if body else {}


JsonBody = Annotated[Any, Depends(_read_json)]
"""The request's body as a JSON value, whatever its content type says."""

OptionalJsonBody = Annotated[Any, Depends(_read_optional_json)]
"""The same; an empty object where there is no body."""


def require_declared_size(request: Request, limit: int) -> None:
    """Refuse by Content-Length, before anything is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        require_size(int(declared), limit)


def require_size(size: int, limit: int) -> None:
    if size > limit:
        raise TooLarge(f"the body has {size} bytes or more; this server allows {limit}")


def parse_json(data: bytes, *, pointer: str = "") -> Any:
    """A JSON value.

    Raises:
        InvalidInput: at `pointer`, if it is not JSON; NaN and Infinity are not.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON number")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidInput.at(pointer, f"not readable as JSON: {error or 'nested too deeply'}") from None


class Findings:
    """Broken rules from several checks, so that one answer names them all.

    `with findings:` keeps what the block finds wrong, and goes on behind it.
    """

    def __init__(self) -> None:
        self._found: list[InvalidInput] = []

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

    def settle(self) -> None:
        """Raises `InvalidInput` with all that was found, if anything was."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            errors = [error for found in self._found for error in found.errors]
            raise InvalidInput("; ".join(found.message for found in self._found), errors=errors)


def body_schema(model: type[BaseModel], *, required: list[str], optional: bool = False) -> dict[str, Any]:
    """OpenAPI's request body for a spec that is posted with almost everything left out, or whole (`optional`)."""
    return {
        "requestBody": {
            "required": not optional,
            "content": {"application/json": {"schema": posted_schema(model, required)}},
        }
    }


def posted_schema(model: type[BaseModel], required: list[str]) -> dict[str, Any]:
    """The JSON schema of a model, self-contained, with only `required` required of it and of no object inside."""
    schema = model.model_json_schema()
    definitions: dict[str, Any] = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inline(definitions[node["$ref"].rpartition("/")[2]])
        return {
            key: inline(value) for key, value in node.items() if not (key == "required" and isinstance(value, list))
        }

    relaxed: dict[str, Any] = inline(schema)
    return relaxed | {"required": required}
