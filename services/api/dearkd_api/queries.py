"""Query parameters: unknown ones are refused, so that `?dryrun=true` does not start a real job."""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from dearkd.errors import FieldError, InvalidInput, json_pointer


async def require_known_parameters(request: Request) -> None:
    """Require, on all routes under `/v1`, that each parameter is one that the route declares, and given once.

    Raises:
        InvalidInput: with a pointer to each that is not.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute) or not route.path.startswith("/v1"):
        return
    allowed = known_parameters(route)
    errors = []
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in allowed:
            errors.append(FieldError(json_pointer([name[:80]]), _unknown(name, allowed)))
        elif times > 1:
            errors.append(FieldError(json_pointer([name]), f"given {times} times; give it once"))
    if errors:
        raise InvalidInput.all_of(errors)


def known_parameters(route: APIRoute) -> list[str]:
    """The query parameters that a route declares, itself or through what it depends on."""
    return sorted(_declared(route.dependant))


def _declared(dependant: Dependant) -> set[str]:
    own = {str(field.alias) for field in dependant.query_params}
    return own.union(*(_declared(one) for one in dependant.dependencies))


def _unknown(name: str, allowed: Sequence[str]) -> str:
    near = get_close_matches(name[:80], allowed, n=1)
    meant = f", did you mean {near[0]!r}?" if near else ";"
    there_are = f"there are {', '.join(allowed)}" if allowed else "this address takes none"
    return f"unknown query parameter {name[:80]!r}{meant} {there_are}"
