"""Output of the commands: results to stdout, everything else to stderr, and with `--json` one JSON value to stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from dearkd.cli.streams import speaks_unicode
from dearkd.errors import DearKDError, InvalidInput
from dearkd.names import printable, printable_json

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dearkd.client import Client

MAX_CELL = 40

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="Show at most this many, newest first.")]


def connect() -> Client:
    """The client of the API that `DEARKD_URL` names."""
    from dearkd.client import Client
    from dearkd.settings import Settings

    settings = Settings()
    try:
        return Client(settings.url, settings.api_key)
    except InvalidInput as error:
        raise typer.BadParameter(error.message) from None


def json_of(answer: BaseModel) -> dict[str, Any]:
    """The JSON object of an answer, as the API sent it."""
    from dearkd.storage.catalog import Manifest

    shown = answer.model_dump(mode="json", by_alias=True, exclude_unset=True)
    # Of a resource the API says first whether it is there.
    return {"status": shown["status"]} | shown if isinstance(answer, Manifest) and "status" in shown else shown


def print_json(value: Any) -> None:
    print(printable_json(value, ascii_only=not speaks_unicode()), flush=True)


def print_error(error: DearKDError, *, as_json: bool) -> None:
    message = f"{error.message} ({error.cause})" if error.cause else error.message
    if as_json:
        fields = [{"pointer": field.pointer, "detail": field.detail} for field in error.errors]
        report = {"code": error.code, "message": message, "retryable": error.retryable, "errors": fields}
        print_json({"error": report})
    else:
        one_line = printable(" ".join(message.split()))
        Console(stderr=True).print(Text(f"error: {one_line}", style="red"), soft_wrap=True)


def note(text: str) -> None:
    """A remark beside the result."""
    Console(stderr=True).print(printable(text, keep="\n"), markup=False, highlight=False, soft_wrap=True)


def print_item(answer: BaseModel, *, as_json: bool) -> None:
    item = json_of(answer)
    if as_json or not sys.stdout.isatty():
        print_json(item)
    else:
        from rich.highlighter import JSONHighlighter

        Console().print(JSONHighlighter()(printable_json(item)), soft_wrap=True)


def print_pulled(directory: Path, files: Sequence[Path], *, as_json: bool, **more: Any) -> None:
    """Say what was fetched to a folder; `more` stands in the JSON beside it."""
    if as_json:
        listed = [{"name": path.name, "bytes": path.stat().st_size} for path in files]
        print_json({"directory": str(directory), "files": listed, **more})
    else:
        print(directory)
        note(f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes")


def print_list(items: Iterator[dict[str, Any]], columns: Mapping[str, str], *, limit: int, as_json: bool) -> None:
    """The first `limit` items: as the API's page, or as a table of `columns` (heading → field)."""
    shown = list(islice(items, limit + 1))
    has_more = len(shown) > limit
    del shown[limit:]
    if as_json:
        print_json({"data": shown, "has_more": has_more})
        return
    rows = [[cell(field, item.get(field)) for field in columns.values()] for item in shown]
    print_table(list(columns), rows)
    if has_more:
        note(f"there are more: raise --limit ({limit})")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))
    # As wide as it is: a narrow terminal wraps a row, where rich would cut ids that are then of no use.
    Console(width=10_000).print(table)


def cell(field: str, value: Any) -> str:
    if value is None:
        return "–"
    if field == "created_at":
        return age(value)
    if isinstance(value, list):
        return f"{len(value):,}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def age(timestamp: str) -> str:
    """`3 min ago`, from an RFC 3339 time."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
