"""The paths of the pages, and which of them are open to all."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

LOGIN: Final = "/login"
LOGOUT: Final = "/logout"
OPEN: Final = frozenset({LOGIN, LOGOUT, "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics"})
"""Paths that need no login: they tell nothing of anybody's work, or ask for the key itself."""

_NO_PAGES: Final = ("/v1/", "/static/", "/openapi.json/", "/healthz/", "/readyz/", "/metrics/")
_FOLDERS: Final[dict[str, str]] = {"syn": "jobs", "run": "runs", "ds": "datasets", "mdl": "models", "tch": "teachers"}


def is_page(path: str) -> bool:
    """Tell whether a path is one for people, also where nothing lies there."""
    return not (path + "/").startswith(_NO_PAGES)


def needs_login(path: str) -> bool:
    """Tell whether a path is a page that, where there are keys, only who has logged in may see."""
    return is_page(path) and path not in OPEN


def page_of(identifier: str) -> str:
    """The path of the page of a job or a resource, by its id; that of all jobs for what is none."""
    folder = _FOLDERS.get(identifier.partition("-")[0])
    return f"/{folder}/{quote(identifier, safe='')}" if folder else "/"


def made_by(result: Mapping[str, Any] | None) -> list[str]:
    """The ids of the resources in a job's result, which holds other things too (`ended_early`, `forecast`)."""
    return [str(result[kind]) for kind in ("dataset", "model") if kind in result] if result else []


def local(path: str | None, otherwise: str = "/") -> str:
    """A path of this server to go on with; what could lead elsewhere becomes `otherwise`."""
    if path is None or re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]{0,1000}", path) is None:
        return otherwise
    return path
