"""Inputs of a form for a typed request: made from its fields, with their docstrings as help; and read back."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dearkd.errors import InvalidInput
from dearkd.specs import Spec
from dearkd.specs.base import REFERENCES
from dearkd_api.bodies import parse_json
from dearkd_api.job_filters import labels_of

Kind = Literal["text", "number", "truth", "choice", "words", "labels", "json", "secret"]


@dataclass(frozen=True, slots=True)
class Input:
    """One input: a field of the request, by its path with dots."""

    name: str
    kind: Kind
    help: str
    choices: tuple[str, ...] = ()
    default: str = ""
    """The value that it has where it is left empty, as far as that does not depend on others."""
    bounds: str = ""
    required: bool = False

    @property
    def group(self) -> str:
        """The name of the object that it is in; empty for those of the request itself."""
        return self.name.rpartition(".")[0]

    @property
    def refers(self) -> bool:
        """True if it names a stored resource."""
        return self.kind == "text" and any(self.name in names for names in REFERENCES.values())


def inputs(request: type[Spec], prefix: str = "") -> Iterator[Input]:
    """The inputs of a request, those of the objects in it with a dot in their names.

    The first of an object's inputs begins with what the object is for.
    """
    for name, field in request.model_fields.items():
        inner = _plain(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Spec):
            first, *rest = inputs(inner, f"{prefix}{name}.")
            yield replace(first, help=f"{_help(field)} {first.help}".strip())
            yield from rest
        else:
            yield _input(f"{prefix}{name}", inner, field)


def read(given: Mapping[str, str], wanted: list[Input]) -> dict[str, Any]:
    """The request that a form's fields make; what is left empty is left out.

    What cannot be read stays text, so that the request's own check says what is wrong with it.
    """
    request: dict[str, Any] = {}
    for one in wanted:
        text = given.get(one.name, "").strip()
        if not text:
            continue
        *path, last = one.name.split(".")
        place = request
        for part in path:
            place = place.setdefault(part, {})
        place[last] = _value(one, text)
    return request


def named_by(pointer: str, wanted: list[Input]) -> str | None:
    """The input that a JSON pointer leads to, or into; None if it leads to none."""
    path = pointer.strip("/").split("/")
    names = {one.name for one in wanted}
    candidates = (".".join(path[:length]) for length in range(len(path), 0, -1))
    return next((name for name in candidates if name in names), None)


def _input(name: str, kind: Any, field: FieldInfo) -> Input:
    default = field.default
    shown = "" if default is PydanticUndefined or default in (None, {}) else default
    rules = [text for rule in field.metadata if (text := _bound(rule))]
    return Input(
        name=name,
        kind=_kind(name, kind),
        help=_help(field),
        choices=tuple(str(one) for one in get_args(kind)) if get_origin(kind) is Literal else (),
        default=_default(shown, _kind(name, kind)),
        bounds=", ".join(rules),
        required=field.is_required() and "." not in name,  # of an object that is left out nothing is required
    )


def _default(value: Any, kind: Kind) -> str:
    if kind == "words" and isinstance(value, list):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def _help(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _kind(name: str, kind: Any) -> Kind:
    if name == "labels":
        return "labels"
    if name == "webhook.secret":
        return "secret"
    if get_origin(kind) is list and get_origin(_plain(get_args(kind)[0])) is Literal:
        return "words"
    if get_origin(kind) is Literal:
        return "choice"
    simple: dict[Any, Kind] = {bool: "truth", int: "number", float: "number", str: "text"}
    return simple.get(kind, "json")


def _plain(kind: Any) -> Any:
    """A type without its rules, and without None."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    # `X | None` and `Optional[X]` have other origins.
    parts = [part for part in get_args(kind) if part is not type(None)]
    if type(None) in get_args(kind) and len(parts) == 1 and get_origin(kind) is not Literal:
        return _plain(parts[0])
    return kind


def _bound(rule: Any) -> str:
    signs = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
    found = ((words, getattr(rule, sign, None)) for sign, words in signs)
    return ", ".join(f"{words} {bound:,}" for words, bound in found if _is_number(bound))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _value(one: Input, text: str) -> Any:
    if one.kind == "truth":
        return {"true": True, "false": False}.get(text, text)
    if one.kind == "labels":
        return dict(labels_of(",".join(part.strip() for part in text.split(",") if part.strip())))
    if one.kind == "words":
        return [part.strip() for part in text.split(",") if part.strip()]
    if one.kind not in ("number", "json"):
        return text
    for attempt in (text, f"[{text}]") if one.kind == "json" else (text,):
        try:
            return parse_json(attempt.encode())
        except InvalidInput:
            continue
    return text
