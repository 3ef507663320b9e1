"""The frame of all pages: their templates, their headers, and what each of them knows."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

import dearkd
from dearkd.errors import Unavailable
from dearkd_api.answer_headers import PAGE_HEADERS
from dearkd_api.dashboard import figures
from dearkd_api.page_paths import made_by, page_of
from dearkd_api.sessions import COOKIE

# Whatever a name holds is text: everything is escaped, and what a template does not get is an error.
_TEMPLATES: Final = Environment(
    loader=PackageLoader("dearkd_api.dashboard"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= figures.FILTERS
_TEMPLATES.globals |= {"page_of": page_of, "made_by": made_by, "version": dearkd.__version__}


def show(
    request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **context: Any
) -> HTMLResponse:
    """A page.

    Args:
        request: that it answers.
        template: its name in `templates`.
        status, headers: of the answer.
        context: the variables of the template.
    """
    context |= {
        "path": request.url.path,
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "identity": getattr(request.state, "identity", None),
        "form_token": _form_token(request),
    }
    return bare(template, status=status, headers=headers, **context)


def _form_token(request: Request) -> str:
    """The token of a page's forms; none without Redis, where what lies in storage is shown and forms are refused."""
    try:
        token: str = request.app.state.backend.sessions.form_token(request.cookies.get(COOKIE))
    except Unavailable:
        return ""
    return token


def bare(template: str, *, status: int, headers: Mapping[str, str] | None = None, **context: Any) -> HTMLResponse:
    """A page that knows nothing but what it is given: one without forms, which Redis is not needed for."""
    text = _TEMPLATES.get_template(template).render(context)
    # What was posted may hold surrogates, which UTF-8 cannot encode.
    body = text.encode("utf-8", "replace")
    return HTMLResponse(body, status_code=status, headers={**PAGE_HEADERS, **(headers or {})})
