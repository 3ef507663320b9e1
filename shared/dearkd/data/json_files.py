"""JSON files that people and other tools may have written."""

import codecs
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from dearkd.documents import FIELD, Document, claimed, require_known
from dearkd.errors import InvalidInput, json_pointer

T = TypeVar("T")


MAX_SHOWN = 200
"""Characters of a place in a file that are shown in a message."""


def read_json(kind: type[T], text: bytes, *, where: str, what: str, remedy: str) -> T:
    """The file's content as a value of `kind`.

    Args:
        kind: a pydantic model, or a type such as `list[str]`.
        text: the file's bytes.
        where: the file, for the message.
        what: what it should be: "the manifest of a model".
        remedy: what to do about it.

    Raises:
        InvalidInput: if it is no JSON, or not of that kind; says the first thing that is wrong with it, and where.
        NewerSchema: if it is a document that a newer version wrote.
    """
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidInput(f"{where} is not {what}: it is UTF-16, and must be UTF-8; {remedy}")
    # Windows editors begin files with the mark of UTF-8, which is no JSON.
    text = text.removeprefix(codecs.BOM_UTF8)
    if isinstance(kind, type) and issubclass(kind, Document):
        schema = claimed(text, FIELD)
        require_known(schema if isinstance(schema, int) else 1, kind.newest, where)
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = json_pointer(first["loc"])[:MAX_SHOWN]
        wrong = f"{place}: {first['msg']}" if place else first["msg"]
        raise InvalidInput(f"{where} is not {what}: {wrong}; {remedy}") from None
