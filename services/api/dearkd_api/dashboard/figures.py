"""Figures as people read them; the filters of the templates."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final

NOTHING: Final = "–"


def number(value: Any) -> str:
    """A number with four significant digits, or all of them where it is whole; other values as text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}" if isfinite(value) else str(value)


def percent(value: Any) -> str:
    """A fraction as percent, to a tenth; other values as `number` has them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        return number(value)
    return f"{100 * value:.1f} %"


def size(value: float | None) -> str:
    """Bytes in the unit of which there are fewer than 1024."""
    if value is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" or value >= 100 else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that tells most."""
    if seconds is None:
        return NOTHING
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def ago(moment: datetime) -> str:
    """The time since a moment."""
    return f"{duration((datetime.now(UTC) - moment).total_seconds())} ago"


def moment(value: datetime) -> str:
    """A moment, in UTC, to the second."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def pretty(value: Any) -> str:
    """A value as JSON over several lines."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def words(name: str) -> str:
    """A name of our data as people write it."""
    return name.replace("_", " ")


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "number": number,
    "percent": percent,
    "size": size,
    "duration": duration,
    "ago": ago,
    "moment": moment,
    "pretty": pretty,
    "words": words,
}
