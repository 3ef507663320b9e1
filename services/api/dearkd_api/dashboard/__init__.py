"""The pages for people: rendered here from what `/v1` reads, usable without a script; and the API's reference.

Each page is a module with its templates. All of them read as the routes of `/v1` do, for the same key: a login stands
for one (`sessions`). What a form changes is refused without the token that its page holds (`forms`).
"""

import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from dearkd_api.dashboard import dataset, entering, job, jobs, model, new, reference, resources, run
from dearkd_api.dashboard.forms import CONTENT_TYPES as CONTENT_TYPES
from dearkd_api.dashboard.forms import UPLOAD_TYPES as UPLOAD_TYPES
from dearkd_api.dashboard.problem_pages import ShowProblems as ShowProblems


class _Unversioned(StaticFiles):
    """Files that a browser must revalidate each time, so that after an update a page never runs an old script."""

    def file_response(self, full_path: "str | os.PathLike[str]", *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(full_path, *args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


STATIC = _Unversioned(directory=Path(__file__).parents[1] / "static")

router = APIRouter(include_in_schema=False)
for page in (entering, jobs, job, run, dataset, model, new, resources, reference):
    router.include_router(page.router)
