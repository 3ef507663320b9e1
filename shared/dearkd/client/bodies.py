"""Bodies of requests, from specs and from keyword arguments."""

from collections.abc import Mapping
from typing import Any

from dearkd.errors import InvalidInput
from dearkd.specs import Spec


def json_of(value: Any) -> Any:
    """The JSON value of a spec, with those fields alone that were given, and of lists and objects that hold some."""
    match value:
        case Spec():
            fields = type(value).model_fields
            # Not `model_dump`, which never shows a webhook's secret.
            return {
                fields[name].alias or name: json_of(getattr(value, name))
                for name in fields
                if name in value.model_fields_set
            }
        case Mapping():
            return {name: json_of(member) for name, member in value.items()}
        case list() | tuple() | range():
            return [json_of(member) for member in value]
        case _:
            return value


def request_body(kind: type[Spec], request: Spec | Mapping[str, Any] | None, fields: Mapping[str, Any]) -> Any:
    """The body of a request.

    Args:
        kind: that it must be, where it is given by its fields.
        request: a spec, or an object that the API alone checks.
        fields: of a request, in place of one.

    Raises:
        InvalidInput: with a pointer for each field that breaks a rule; if both are given.
    """
    if request is None:
        body = json_of(fields)
        kind.check(body)
        return body
    if fields:
        raise InvalidInput(f"a {kind.__name__} was given and {', '.join(sorted(fields))} too: give one or the other")
    return json_of(request)
