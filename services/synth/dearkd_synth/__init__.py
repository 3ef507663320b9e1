"""Synthesis: a training set from a CNN alone.

`DeepInversion` is the library; `dearkd_synth.service` is the service around it. Importing this package imports no torch
until `DeepInversion` is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dearkd_synth.inversion import DeepInversion

__all__ = ["DeepInversion"]


def __getattr__(name: str) -> Any:
    if name == "DeepInversion":
        from dearkd_synth.inversion import DeepInversion

        return DeepInversion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
