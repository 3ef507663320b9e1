"""Names that people give: which characters they may have, and how any text is shown where a terminal or a log reads it.

Jobs, teachers, datasets and classes are named by their users, and the names reach terminals, logs and Markdown. What
steers those (ESC, line breaks, characters that turn the direction of writing or show nothing) is refused at the door.
Older stores, file systems and other tools' files hold such names all the same, so what is shown is made `printable`.
"""

import json
import re
import unicodedata
from typing import Any

_JOINERS = "\u200c\u200d"
"""Persian, Indic scripts and emoji are not written without them."""

_PUNCTUATION = re.compile(r"([\\`*_\[\]<>#!|~&])")


def first_control(text: str) -> str | None:
    """The first character of a text that a name must not have, such as `U+001B at position 3`; None if there is none.

    Those are Unicode's control characters (Cc), format characters (Cf: marks of direction, of zero width, tags) but for
    the two joiners, line and paragraph separators, and halves of surrogate pairs.
    """
    if text.isprintable():
        return None
    return next((f"U+{ord(c):04X} at position {i}" for i, c in enumerate(text, 1) if _steers(c)), None)


def check_name(text: str) -> str:
    """The name itself.

    Raises:
        ValueError: if it has a character that a name must not have.
    """
    found = first_control(text)
    if found is not None:
        raise ValueError(
            f"it has the control character {found}: names are shown on terminals, in logs and in Markdown, so leave "
            "out control characters, line breaks, and marks of direction or of zero width"
        )
    return text


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with every character that names must not have written as `\n`, `\x1b` or `\u202e`.

    Args:
        keep: such characters that stay, as line breaks may where the text is a page.
    """
    if text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if _steers(c) and c not in keep else c for c in text)


def printable_json(value: Any, *, ascii_only: bool = False) -> str:
    r"""The value as indented JSON, with those characters as JSON's own `\u…`, so that it reads back the same."""
    text = json.dumps(value, indent=2, ensure_ascii=ascii_only)
    return "".join(json.dumps(c)[1:-1] if c != "\n" and _steers(c) else c for c in text)


def markdown(text: str) -> str:
    """A text on one line of Markdown, also in a cell of a table, of which nothing is taken for markup or HTML."""
    return _PUNCTUATION.sub(r"\\\1", printable(" ".join(text.split())))


def markdown_code(text: str) -> str:
    """A text as a code span, which none of its backticks ends. In a cell of a table a `|` would."""
    shown = printable(" ".join(text.split()))
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if "`" in shown or not shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS
