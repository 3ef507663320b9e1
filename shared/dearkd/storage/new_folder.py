"""A folder of results, there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dearkd.errors import Conflict
from dearkd.identifiers import new_id


def require_new(path: Path) -> None:
    """Raises `Conflict` if `path` is there already and is no empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise Conflict(f"{path} is there already and not empty: name a folder that does not exist, or an empty one")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `path` once everything in it is written, and never otherwise.

    Raises:
        Conflict: if `path` is there already and is no empty folder.
    """
    path = path.absolute()
    require_new(path)
    part = path.with_name(f".{path.name}.{new_id('tmp')}")
    part.mkdir(parents=True)
    try:
        yield part
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
