"""One call from a trained CNN to a transformer: `distill(teacher, out)`, or `dearkd distill` on the command line.

No Redis, HTTP or storage is needed. Importing this package imports no torch until one of its names is asked for.
"""

from typing import TYPE_CHECKING, Any

from dearkd.imports import import_large

if TYPE_CHECKING:
    from dearkd_distill.distillation import Distillation, distill

__all__ = ["Distillation", "distill"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_large("dearkd_distill.distillation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
