"""The terms of the objective that plug in, by name, so that their weights are fields of a spec like the published ones.

The entry point group `dearkd.terms` names packages; each module in one is a term, called as the module is. Only names
are looked at here: importing a term would import torch.
"""

from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, TypeVar

from pydantic import BaseModel, Field, create_model

GROUP = "dearkd.terms"

Weights = TypeVar("Weights", bound=BaseModel)


def term_modules() -> dict[str, str]:
    """Name of each term to the full name of its module."""
    packages = [entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
    return {
        found.name: f"{package.__name__}.{found.name}"
        for package in packages
        for found in iter_modules(package.__path__)
    }


def with_plugged_in(weights: type[Weights]) -> type[Weights]:
    """The model with a further field, at least 0 and by default 0, for each term that it has none for."""
    more: dict[str, Any] = {
        name: (float, Field(default=0.0, ge=0)) for name in term_modules() if name not in weights.model_fields
    }
    if not more:
        return weights
    return create_model(
        weights.__name__, __base__=weights, __module__=weights.__module__, __doc__=weights.__doc__, **more
    )
