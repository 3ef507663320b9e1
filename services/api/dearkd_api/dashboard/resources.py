"""The lists of datasets, models and teachers, and the page of a teacher."""

from fastapi import APIRouter, Request, Response

from dearkd.documents import Unread
from dearkd.storage.catalog import Catalog, ManifestT
from dearkd_api.access import Viewer
from dearkd_api.backend import Uses
from dearkd_api.dashboard.forms import PageRoute
from dearkd_api.dashboard.frame import show
from dearkd_api.pages import require_id

SHOWN = 50

router = APIRouter(route_class=PageRoute)


@router.get("/datasets")
def list_datasets(request: Request, backend: Uses, viewer: Viewer, after: str = "") -> Response:
    """List datasets, newest first."""
    return _list(request, backend.datasets, viewer, after)


@router.get("/models")
def list_models(request: Request, backend: Uses, viewer: Viewer, after: str = "") -> Response:
    """List models, newest first."""
    return _list(request, backend.models, viewer, after)


@router.get("/teachers")
def list_teachers(request: Request, backend: Uses, viewer: Viewer, after: str = "") -> Response:
    """List teachers, newest first."""
    return _list(request, backend.teachers, viewer, after)


@router.get("/teachers/{identifier}")
def teacher_page(identifier: str, request: Request, backend: Uses, viewer: Viewer) -> Response:
    """Show a teacher."""
    return show(request, "teacher.html", teacher=backend.teachers.get(identifier, viewer=viewer))


def _list(request: Request, catalog: Catalog[ManifestT], viewer: str | None, after: str) -> Response:
    unread: list[Unread] = []
    after_id = require_id(after or None, catalog.kind)
    found, more = catalog.page(limit=SHOWN, after=after_id, viewer=viewer, unread=unread)
    here = f"/{catalog.root}"
    return show(
        request,
        f"{catalog.root}.html",
        found=found,
        unread=unread,
        first=bool(after),
        start=here,
        more=f"{here}?after={found[-1].id}" if more else None,
    )
