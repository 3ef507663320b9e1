"""The pages for people: the dashboard, which polls the API, and the reference that shows its schema."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from dearkd_api.answer_headers import PAGE_POLICY

router = APIRouter(include_in_schema=False)


class _Unversioned(StaticFiles):
    """Files that a browser must revalidate each time, so that after an update a page never runs an old script."""

    def file_response(self, full_path: "str | os.PathLike[str]", *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(full_path, *args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


STATIC = _Unversioned(directory=Path(__file__).parent / "static")


@router.get("/")
def dashboard() -> HTMLResponse:
    return _page("dashboard.html")


@router.get("/docs")
def reference() -> HTMLResponse:
    return _page("docs.html")


def _page(name: str) -> HTMLResponse:
    page = files("dearkd_api").joinpath(name).read_text(encoding="utf-8")
    return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"})
