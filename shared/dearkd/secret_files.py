"""Secrets by file: a variable `NAME_FILE` names a file that holds what `NAME` would, so that no environment shows it.

That is how Compose and Kubernetes hand secrets over. A file that does not hold one is an error, never "not given": an
API whose keys were not mounted would stand open.
"""

import os
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 2**16


def read_secret(path: Path) -> str:
    """Read the one line of a secret's file, without blanks and line ends around it.

    Raises:
        ValueError: if it cannot be read, is empty, larger than 64 KiB, no text, or more than one line; the message
            holds nothing of what it contains.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ValueError("there is no such file: mount the secret there") from None
    except PermissionError:
        raise ValueError(f"user {os.geteuid()} may not read it: let that user, or its group, read the file") from None
    except (OSError, ValueError) as error:  # a folder, a name with NUL
        raise ValueError(f"it cannot be read ({getattr(error, 'strerror', None) or error}): name a file") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes: name a file that holds the secret alone")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8: write the secret as one line of text") from None
    if not text:
        raise ValueError("it is empty: write the secret into it, as one line")
    if not text.isprintable():
        raise ValueError("it holds more than one line, or a control character: write the secret as one line of text")
    return text


def secret_of_environment(name: str) -> str | None:
    """Read the secret that the variable `NAME_FILE` names a file for; None where there is none.

    Raises:
        ValueError: if the file does not hold one, or `NAME` is set too; the message begins with the variable's name.
    """
    variable = f"{name}_FILE"
    if (path := os.environ.get(variable)) is None:
        return None
    if os.environ.get(name):
        raise ValueError(f"{variable} is {path!r}, and {name} is set too: unset one of them")
    try:
        return read_secret(Path(path))
    except ValueError as error:
        raise ValueError(f"{variable} is {path!r}: {error}") from None
