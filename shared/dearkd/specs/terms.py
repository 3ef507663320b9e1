"""The terms of the objective that plug in, by name, so that their weights are fields of a spec like the published ones.

The entry point group `dearkd.terms` names packages; each module in one is a term, called as the module is. Only names
are looked at here: importing a term would import torch.
"""

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

from pydantic import BaseModel, Field, create_model

GROUP = "dearkd.terms"

Weights = TypeVar("Weights", bound=BaseModel)


def term_modules() -> dict[str, str]:
    """Name of each term to the full name of its module; a package that is not installed adds none."""
    found: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        found |= {module.name: f"{entry.value}.{module.name}" for module in iter_modules(_folders(entry.value))}
    return found


def _folders(package: str) -> list[str]:
    """The folders of a package, found without importing it or the packages around it."""
    top, *inner = package.split(".")
    spec = find_spec(top)
    places = spec.submodule_search_locations if spec is not None else None
    return [str(Path(place, *inner)) for place in places or ()]


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
