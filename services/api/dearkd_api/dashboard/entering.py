"""Login by API key, and logout."""

from hashlib import sha256

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from dearkd_api.backend import Backend, Uses
from dearkd_api.dashboard.forms import Form, PageRoute
from dearkd_api.dashboard.frame import show
from dearkd_api.keys import UNKNOWN_SECONDS, KeyRefused
from dearkd_api.page_paths import LOGIN, LOGOUT, local
from dearkd_api.sessions import COOKIE

router = APIRouter(route_class=PageRoute)


@router.get(LOGIN)
async def login_form(request: Request, backend: Uses, next: str | None = None) -> Response:
    """Show the form that asks for a key; go on at once where there are none."""
    await backend.keys.refresh()
    if not backend.keys:
        return RedirectResponse(local(next), 303)
    return await run_in_threadpool(show, request, "login.html", next=local(next), why=None)


@router.post(LOGIN)
async def log_in(request: Request, backend: Uses, form: Form) -> Response:
    """Begin a login with a key that may."""
    key, goal = form.get("key", "").strip(), local(form.get("next"))
    digest = sha256(key.encode("utf-8", "surrogatepass")).digest()
    try:
        await _require_key(backend, digest)
    except KeyRefused as refused:
        client = (request.scope.get("client") or ("",))[0]
        if not backend.key_failures.admit(client):
            why, status = "Too many wrong API keys came from this address: wait a minute.", 429
        else:
            why, status = f"The API key {refused.why}.", 401
        return await run_in_threadpool(show, request, "login.html", status=status, next=goal, why=why)
    await run_in_threadpool(_end, request, backend)
    token = await run_in_threadpool(backend.sessions.begin, digest)
    response = RedirectResponse(goal, 303)
    # Where a proxy takes the encryption off, the browser's own word is left of it.
    secure = "https" in (request.url.scheme, request.headers.get("origin", "").partition(":")[0])
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure)
    return response


@router.post(LOGOUT)
def log_out(request: Request, backend: Uses) -> Response:
    """End the login."""
    _end(request, backend)
    response = RedirectResponse(LOGIN, 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


async def _require_key(backend: Backend, digest: bytes) -> None:
    """Raises `KeyRefused` if a digest is not that of a key that may."""
    await backend.keys.refresh()
    try:
        backend.keys.of_digest(digest)
    except KeyRefused:
        await backend.keys.refresh(UNKNOWN_SECONDS)
        backend.keys.of_digest(digest)


def _end(request: Request, backend: Backend) -> None:
    if token := request.cookies.get(COOKIE):
        backend.sessions.end(token)
