"""Things that a command line names by their id or by their name."""

from collections.abc import Iterable
from typing import Literal

import typer

from dearkd.answers import ApiKey
from dearkd.client import JOBS, Client
from dearkd.errors import InvalidInput, NotFound
from dearkd.jobs.model import Job
from dearkd.names import printable
from dearkd.storage.catalog import Manifest

Kind = Literal["teacher", "dataset", "model", "job", "synthesis job", "key"]

PREFIXES: dict[Kind, tuple[str, ...]] = {
    "teacher": ("tch-",),
    "dataset": ("ds-",),
    "model": ("mdl-",),
    "job": ("syn-", "run-"),
    "synthesis job": ("syn-",),
    "key": ("key-",),
}
MOST_NAMED = 5


def identifier_of(client: Client, reference: str, *kinds: Kind) -> str:
    """The id of what a reference means: the reference itself if it is an id, else of the one thing of that name.

    Args:
        client: of the API that knows the names.
        reference: an id, or a name as its owner gave it.
        kinds: what it may be of; an earlier kind's name wins over a later one's.

    Raises:
        typer.BadParameter: if it is an id of another kind.
        NotFound: if nothing of these kinds has that name.
        InvalidInput: if several have, naming the newest of them.
    """
    if reference.startswith(tuple(prefix for kind in kinds for prefix in PREFIXES[kind])):
        return reference
    others = sorted({prefix for known in PREFIXES.values() for prefix in known})
    wanted = " or ".join(kinds)
    examples = " or ".join(f"{prefix}…" for kind in kinds for prefix in PREFIXES[kind])
    if reference.startswith(tuple(others)):
        raise typer.BadParameter(f"{printable(reference)} is no {wanted}: an id of one looks like {examples}")
    for kind in kinds:
        found = [item for item in _all(client, kind) if item.name == reference]
        if len(found) > 1:
            shown = ", ".join(item.id for item in found[:MOST_NAMED])
            more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
            raise InvalidInput(
                f"{len(found)} of kind {kind} have the name {printable(reference)!r}: give an id, newest first: "
                f"{shown}{more}",
                code="ambiguous_name",
            )
        if found:
            return found[0].id
    raise NotFound(f"no {wanted} has the name {printable(reference)!r}; an id looks like {examples}")


def _all(client: Client, kind: Kind) -> Iterable[Job | Manifest | ApiKey]:
    match kind:
        case "teacher":
            return client.list_teachers()
        case "dataset":
            return client.list_datasets()
        case "model":
            return client.list_models()
        case "key":
            return client.list_keys()
        case "synthesis job":
            return client.list_jobs("synthesis")
        case "job":
            found = [job for kind in JOBS for job in client.list_jobs(kind)]
            return sorted(found, key=lambda job: job.created_at, reverse=True)
