"""`report.html`: one page of HTML without scripts that asks for nothing, with its pictures and curves inside it.

Whatever a name holds is text: everything is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import dearkd

MAX_BYTES: Final = 3_000_000
"""A page is not larger: what grows with the number of classes or of epochs is cut before."""
MORE: Final = "<!-- more -->"
"""The place of further sections; no text of a page can hold it, since each `<` is escaped."""

_TEMPLATES: Final = Environment(
    loader=PackageLoader("dearkd_trainer.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def percent(value: float | None) -> str:
    """A fraction in percent; a dash for none."""
    return "–" if value is None else f"{value:.2%}"


def number(value: float | int | None) -> str:
    """A number as people read it; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


_TEMPLATES.filters |= {"percent": percent, "number": number}
_TEMPLATES.globals |= {"version": dearkd.__version__, "more": Markup(MORE)}


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under a heading of its own."""

    title: str
    text: str = ""
    table: Sequence[tuple[str, str]] = ()
    pictures: Sequence[tuple[str, str]] = ()
    """Data URIs, and what they show."""
    charts: Sequence[tuple[str, Markup]] = ()
    """Captions and drawings."""


def render(**context: Any) -> str:
    """The page of a run.

    Args:
        context: the variables of `templates/report.html`.

    Raises:
        ValueError: if it is larger than a page may be.
    """
    return _bounded(_TEMPLATES.get_template("report.html").render(context))


def with_sections(page: str, sections: Sequence[Section]) -> str:
    """The page with further sections before its own.

    Raises:
        ValueError: if it is then larger than a page may be, or is no page of `render`.
    """
    if MORE not in page:
        raise ValueError(f"the page has no {MORE}: give one that a run has left")
    text = _TEMPLATES.get_template("sections.html").render(sections=sections)
    return _bounded(page.replace(MORE, text + MORE, 1))


def _bounded(page: str) -> str:
    size = len(page.encode("utf-8", "replace"))
    if size > MAX_BYTES:
        raise ValueError(f"the page has {size:,} bytes, the most are {MAX_BYTES:,}")
    return page
