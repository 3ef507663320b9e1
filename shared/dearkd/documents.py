"""Stored documents and the number of their form: older ones are read, newer ones refused, by the one check here.

Each kind has a number of its own, `schema_version`, which is written with every document; one without it was written
before there were numbers, and is of schema 1. It rises when a version that came before could not read the document, or
would take it for something else (docs/design/storage.md).
"""

import json
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from dearkd.errors import NewerSchema, Unreadable

FIELD = "schema_version"


class Document(BaseModel):
    """The fields and rules of a stored document."""

    newest: ClassVar[int] = 1
    """The schema that this version writes, and the newest one that it reads."""

    schema_version: SkipJsonSchema[int] = Field(default=1, ge=1)
    """The schema that it was read in; writing gives it this version's."""


class Unread(BaseModel):
    """A document that is there, but that this version cannot read."""

    id: str
    reason: str
    """The words of the error that asking for it gives, with the remedy."""


DocumentT = TypeVar("DocumentT", bound=Document)


def require_known(found: int, newest: int, what: str) -> None:
    """Refuse a document of a newer schema than this version knows.

    Args:
        found: its schema.
        newest: the newest schema of its kind that this version reads.
        what: the document: its key in storage or in Redis, or its path.

    Raises:
        NewerSchema: saying both, and what to do.
    """
    if found > newest:
        raise NewerSchema(
            f"{what} is of schema {found}, and this version of dearkd reads up to {newest}: it is whole, and a newer "
            "version wrote it; upgrade dearkd here to that version"
        )


def read_document(kind: type[DocumentT], text: bytes, key: str, remedy: str) -> DocumentT:
    """Read a document.

    Args:
        kind: of document.
        text: JSON, as it was stored.
        key: of the object that holds it.
        remedy: for a damaged one, as a clause.

    Raises:
        NewerSchema: if a newer version wrote it.
        Unreadable: if it is damaged.
    """
    try:
        found = kind.model_validate_json(text)
    except ValidationError as error:
        # A newer form need not look like ours.
        schema = claimed(text, FIELD)
        require_known(schema if isinstance(schema, int) else 1, kind.newest, key)
        raise Unreadable(key, remedy, error) from None
    require_known(found.schema_version, kind.newest, key)
    return found


def as_written(document: DocumentT) -> DocumentT:
    """The document with the schema that this version writes."""
    return document.model_copy(update={FIELD: document.newest})


def claimed(text: bytes, name: str) -> Any:
    """The field of that name in a document that cannot be read, as far as it can be told; None where it cannot."""
    try:
        return json.loads(text)[name]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
