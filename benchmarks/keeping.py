"""Values that several processes make once and keep in a folder: written by rename, made under a lock."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class Busy(Exception):
    """Another process makes this value."""


def kept(path: Path, make: Callable[[], Any], *, wait: bool = True) -> Any:
    """The value of a file, made where there is none: JSON if it is called so, else what torch saves.

    Args:
        path: of the file; its folder is made too.
        make: makes the value.
        wait: for another process that makes it.

    Raises:
        Busy: if another process makes it, and nobody wants to wait.
    """
    if path.exists():
        return _read(path)
    with _locked(path, wait):
        if path.exists():
            return _read(path)
        value = make()
        new = path.with_name(f".{path.name}.{os.getpid()}")
        if path.suffix == ".json":
            new.write_text(json.dumps(value))
        else:
            torch.save(value, new)
        new.replace(path)
    return value


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=False)


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[None]:
    """Hold the file's lock, which the kernel gives back when a process ends, however it does."""
    place = path.parent / "locks" / path.name
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Busy(path.name) from None
        yield
