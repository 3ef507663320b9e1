"""Filters of lists of jobs: labels and times."""

from typing import Annotated

from fastapi import Query

from dearkd.specs.moments import Moment

LABEL = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}=[^,]{0,200}"
LabelFilter = Annotated[
    str | None,
    Query(
        max_length=4000,
        pattern=f"^{LABEL}(,{LABEL})*$",
        description="Labels that the jobs have, all of them, such as `team=vision,round=3`.",
    ),
]


MomentFilter = Annotated[Moment | None, Query(description="RFC 3339, with its zone.")]


def labels_of(text: str | None) -> list[tuple[str, str]]:
    """The labels that a filter asks for, as names and values."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    return [(name, value) for name, _, value in pairs]
