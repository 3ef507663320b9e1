"""Collections: `{"data": [...], "has_more": bool}`, with `limit` and `after`."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query

from dearkd.documents import Unread
from dearkd.errors import InvalidInput
from dearkd.identifiers import Kind, is_id

Limit = Annotated[int, Query(ge=1, le=200, description="How many at most.")]
After = Annotated[str | None, Query(description="The last id received: go on behind it.")]
DEFAULT_LIMIT = 50
EVENT_ID = r"[0-9]{1,19}-[0-9]{1,19}"
"""The pattern of an event's id, which Redis gives."""
ROW_ID = r"[0-9]{1,9}"
"""The pattern of the id of a row of metrics: they are counted from 1."""
CHECKPOINT_ID = r"[0-9a-f]{16}"
"""The pattern of the id of a checkpoint: it is known by its content."""


def page(data: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    return {"data": list(data), "has_more": has_more}


def stored_page(data: Sequence[dict[str, Any]], has_more: bool, unread: Sequence[Unread]) -> dict[str, Any]:
    """A page of what is stored, with those that cannot be read."""
    return page(data, has_more) | {"unreadable": [one.model_dump() for one in unread]}


def require_id(after: str | None, kind: Kind) -> str | None:
    """Raises `InvalidInput` if `after` cannot be an id of that kind."""
    if after is not None and not is_id(after, kind):
        raise InvalidInput.at("/after", f"{after!r} is no id of this collection; give the last one that you received")
    return after
