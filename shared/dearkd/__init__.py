"""dearkd: train a vision transformer from a CNN alone.

This package is what every part needs: what is asked for (`specs`), what is going on (`jobs`, `store`, `queue`,
`worker`), where it lies (`storage`, `data`) and how to ask for it (`client`, `cli`). Importing any of
it never imports torch; the torch side of what is shared is `dearkd.vision`.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Look the version up when it is asked for: finding it takes longer than a command's help."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dearkd")
    if name == "distill":  # of a package above this one, which the extras synth and trainer make work
        return getattr(import_module("dearkd_distill"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
