"""Standard output and standard error as they may be: in ASCII, closed, full, of no width."""

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import Final

_PLAIN: Final = str.maketrans({"…": "...", "–": "-", "—": "-", "→": "->", "·": "*", "×": "x", "≥": ">=", "≤": "<="})


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that a terminal's encoding lacks by similar ones or an escape, instead of raising an error."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def prepare_streams() -> None:
    """Let whatever is printed be printable."""
    codecs.register_error("dearkd", _replace)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="dearkd")
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "1").strip("0"):  # rich would print nothing at all
            del os.environ[name]


def speaks_unicode() -> bool:
    """Tell whether standard output can print every Unicode character."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "").startswith("utf")


def flush_streams() -> OSError | None:
    """Send what is still held; where that fails, say so and let the interpreter not try it again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        discard_stdout()
        return error
    return None


def discard_stdout() -> None:
    """Nobody reads it any more."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
