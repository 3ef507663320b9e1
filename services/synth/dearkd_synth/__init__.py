"""Synthesis: a training set from a CNN alone.

`DeepInversion` is the library; `dearkd_synth.service` is the service around it. Importing this package imports no torch
until one of its names is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dearkd_synth.inversion import DeepInversion
    from dearkd_synth.synthesised import SynthesisedShard

__all__ = ["DeepInversion", "SynthesisedShard"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("dearkd_synth.inversion"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
