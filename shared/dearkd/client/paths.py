"""Paths of the API's resources and jobs, out of ids that may be any text."""

from typing import Literal
from urllib.parse import quote

from dearkd.choices import Kind
from dearkd.errors import InvalidInput

Collection = Literal["teachers", "datasets", "models", "synthesis-jobs", "training-runs", "keys"]

JOBS: dict[Kind, Collection] = {"synthesis": "synthesis-jobs", "training": "training-runs"}


def path_of(collection: Collection, identifier: str) -> str:
    return f"/v1/{collection}/{segment(identifier)}"


def job_path(identifier: str) -> str:
    """The path of a job in the API.

    Raises:
        InvalidInput: if the identifier is of neither kind of job.
    """
    prefix = identifier.partition("-")[0]
    kinds: dict[str, Kind] = {"syn": "synthesis", "run": "training"}
    if prefix not in kinds:
        raise InvalidInput(f"{identifier!r} is no job: synthesis jobs start with syn-, training runs with run-")
    return path_of(JOBS[kinds[prefix]], identifier)


def segment(text: str) -> str:
    """Text as one segment of a path. Dots alone would be taken for a step, and httpx resolves them."""
    if text.strip(".") == "":
        raise InvalidInput(f"{text!r} is neither an id nor a file name")
    return quote(text, safe="")
