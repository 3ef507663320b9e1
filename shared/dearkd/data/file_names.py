"""Names of files and folders that become names of classes, shards and datasets: they must be UTF-8."""

import os

import typer

from dearkd.names import first_control

RENAME = "rename it (names that are not UTF-8 such as with `convmv -f latin1 -t utf8 -r --notest`)"


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


def require_kept_name(name: str, remedy: str = RENAME) -> None:
    """Raises `typer.BadParameter` if a name that is stored is not UTF-8 or has a control character."""
    require_utf8(name, remedy)
    if found := first_control(name):
        raise typer.BadParameter(f"the name {name!a} has the control character {found}: {remedy}")
