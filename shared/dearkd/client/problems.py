"""Answers that say no, as errors of dearkd's own tree."""

from collections.abc import Mapping
from typing import Any

import httpx

from dearkd.errors import (
    Conflict,
    DearKDError,
    FieldError,
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    TooLarge,
    TooSlow,
    Unavailable,
)

_ERRORS: dict[int, type[DearKDError]] = {
    400: InvalidInput,
    403: Forbidden,
    404: NotFound,
    408: TooSlow,
    409: Conflict,
    413: TooLarge,
    422: InvalidInput,
    429: LimitReached,
    503: Unavailable,
}


def raise_for_status(response: httpx.Response) -> None:
    """Raise what an answer means, if it is an error; its body has been read."""
    if not response.is_error:
        return
    try:
        # An answer to HEAD has no body.
        problem = {} if response.request.method == "HEAD" else response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        raise no_api(str(response.request.url), f"HTTP {response.status_code}: {response.text.strip()[:200]!r}")
    message = str(problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}")
    if response.status_code == 401:
        message += "; set DEARKD_API_KEY to a key of this server"
    kind = _ERRORS.get(response.status_code, DearKDError)
    code = problem.get("code")
    raise kind(message, code=str(code) if code else f"http_{response.status_code}", errors=_fields_of(problem))


def _fields_of(problem: Mapping[str, Any]) -> list[FieldError]:
    return [
        FieldError(str(error.get("pointer", "")), str(error.get("detail", "")))
        for error in problem.get("errors") or ()
        if isinstance(error, dict)
    ]


def no_api(url: str, what: str) -> DearKDError:
    """The error where something answers that is no API of dearkd."""
    return DearKDError(f"{url} does not speak dearkd's API ({what}): check DEARKD_URL", code="not_the_api")
