"""The list of jobs and runs."""

import re
from typing import Annotated, Literal, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from dearkd.choices import Kind, Status
from dearkd.documents import Unread
from dearkd.errors import InvalidInput
from dearkd.jobs.model import kind_of
from dearkd_api.access import Caller, Viewer
from dearkd_api.backend import Uses
from dearkd_api.dashboard import lineage, listing
from dearkd_api.dashboard.forms import PageRoute
from dearkd_api.dashboard.frame import show
from dearkd_api.job_filters import LABEL, labels_of
from dearkd_api.steering import actions_of, shown

SHOWN = 50

router = APIRouter(route_class=PageRoute)


@router.get("/")
def list_jobs(
    request: Request,
    backend: Uses,
    caller: Caller,
    viewer: Viewer,
    q: Annotated[str, Query(max_length=200)] = "",
    status: str = "",
    kind: str = "",
    label: Annotated[str, Query(max_length=4000)] = "",
    after: str = "",
    view: Literal["list", "lineage"] = "list",
) -> Response:
    """List jobs and runs, newest first, or by lineage; if there are keys, only those of the caller's."""
    query = listing.Query(
        text=q.strip(),
        status=_one_of(status, get_args(Status), "status"),
        kind=_one_of(kind, get_args(Kind), "kind"),
        labels=_labels(label.strip()),
    )
    if after and kind_of(after) is None:
        raise InvalidInput.at("/after", f"{after!r:.80} is no id of a job: begin with the first page")
    unread: list[Unread] = []
    jobs, more = listing.list_jobs(backend.store, query, owner=caller, limit=SHOWN, after=after or None, unread=unread)
    jobs = shown(jobs, backend)
    given = {"q": q, "status": status, "kind": kind, "label": label}
    filters = {name: value for name, value in given.items() if value}
    asked = filters | ({"view": view} if view != "list" else {})
    return show(
        request,
        "jobs.html",
        jobs=jobs,
        unread=unread,
        actions_of=actions_of,
        counts=backend.store.counts(owner=caller),
        given=given,
        filtered=bool(filters),
        view=view,
        views={name: "/?" + urlencode(filters | {"view": name}) for name in ("list", "lineage")},
        trees=lineage.trees(jobs, backend, caller, viewer) if view == "lineage" else [],
        first=bool(after),
        more="/?" + urlencode(asked | {"after": more}) if more else None,
        with_status=lambda name: "/?" + urlencode(asked | {"status": name}),
        without_page="/?" + urlencode(asked) if asked else "/",
    )


def _one_of(text: str, choices: tuple[str, ...], name: str):  # type: ignore[no-untyped-def]  # one of the choices
    if text and text not in choices:
        raise InvalidInput.at(f"/{name}", f"{text!r:.80} is no {name}: there are {', '.join(choices)}")
    return text or None


def _labels(text: str) -> tuple[tuple[str, str], ...]:
    if text and re.fullmatch(f"{LABEL}(,{LABEL})*", text) is None:
        raise InvalidInput.at("/label", f"{text!r:.80} is no label: write name=value, several by commas")
    return tuple(labels_of(text))
