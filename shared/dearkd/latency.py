"""The time that operations on Redis and on storage take, told to whoever counts it; nobody does in workers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dearkd.errors import Unavailable

Observer = Callable[[str, float, str | None], None]
"""Hears of each operation: its name, how many seconds it took, and the code of the `Unavailable` that ended it."""


@contextmanager
def timed(observer: Observer | None, operation: str) -> Iterator[None]:
    """Tell an observer, if there is one, of the operation inside.

    Args:
        observer: is called in the thread that did it, so it must be quick.
        operation: one of a few names that stand in the code.
    """
    if observer is None:
        yield
        return
    began = time.perf_counter()
    code: str | None = None
    try:
        yield
    except Unavailable as error:
        code = error.code
        raise
    finally:
        observer(operation, time.perf_counter() - began, code)
