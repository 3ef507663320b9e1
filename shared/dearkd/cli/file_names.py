"""Names of files and folders that become names of classes, shards and datasets: they must be UTF-8."""

import os
from pathlib import Path

import typer

LEVELS = 2
"""Below which a folder is none of a class or a split."""


def require_utf8(name: str, remedy: str) -> None:
    """Raises `typer.BadParameter` if a name from the file system or the command line holds bytes that are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(name)
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            shown = raw.decode("ascii", "backslashreplace")
            raise typer.BadParameter(f"the name '{shown}' is not UTF-8: {remedy}") from None
        raise typer.BadParameter(
            f"the name {raw.decode('utf-8')!r} is UTF-8, but this terminal's encoding is another: set PYTHONUTF8=1"
        ) from None


def require_utf8_names(folder: Path) -> None:
    """Raises `typer.BadParameter`, naming it, for a shard or a folder of a class whose name is not UTF-8."""
    remedy = "rename it (such as with `convmv -f latin1 -t utf8 -r --notest`)"
    for level in range(1, LEVELS + 1):
        for path in sorted(folder.glob("/".join("*" * level))):
            if path.is_dir() or path.suffix == ".tar":
                require_utf8(path.name, remedy)
