"""Arguments of `timm.create_model` that are no numbers. A registered teacher has none, so they must change nothing."""

from collections.abc import Mapping
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import timm

from dearkd.errors import InvalidInput, reason
from dearkd.vision.bounded_construction import ParametersOnMeta

TRIED = frozenset({"global_pool", "act_layer", "norm_layer", "aa_layer", "attn_layer", "pad_type"})
"""Arguments that timm's exports have as text, and that choose among timm's own layers."""


def without_text(architecture: str, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without those that only say in words what the architecture has anyhow.

    Raises:
        InvalidInput: at `/model_args`, naming one that changes the network.
    """
    kept = {name: value for name, value in model_args.items() if not isinstance(value, str)}
    for name in model_args.keys() - kept.keys():
        value = model_args[name]
        if name not in TRIED or _printed(architecture, **{name: value}) != _printed(architecture):
            raise InvalidInput.at(
                "/model_args",
                f"{architecture} was built with {name}={value!r}, and teachers are built with numbers alone: no "
                "architecture of timm.list_models() that has this by itself was named; give one with --architecture",
            )
    return kept


def _printed(architecture: str, **model_args: Any) -> str:
    """The network's layers and their settings, as torch prints them."""
    try:
        with ParametersOnMeta():
            return str(timm.create_model(architecture, **model_args))
    except Exception as error:  # a constructor raises what it likes
        return reason(error)
