"""Access: who may call the API, how often, and whose resources a caller sees."""

from collections.abc import Mapping
from typing import Annotated, Final

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dearkd.choices import Scope as KeyScope
from dearkd.errors import Unavailable
from dearkd.jobs.quotas import KeyQuotas
from dearkd_api.boundary import READING
from dearkd_api.key_failures import KeyFailures
from dearkd_api.keys import SCOPES, UNKNOWN_SECONDS, Identity, KeyRefused, KeyRing
from dearkd_api.page_paths import needs_login
from dearkd_api.problems import problem
from dearkd_api.sessions import COOKIE, Sessions

ADMIN_PATHS: Final = ("/v1/keys", "/v1/audit")
"""Collections that need the scope `admin`."""
OWN_PATH: Final = "/v1/keys/self"

_TITLES: Final[Mapping[str, str]] = {
    "unauthorized": "An API key is needed",
    "key_expired": "The API key has expired",
    "key_revoked": "The API key was revoked",
    "login_expired": "The login has expired",
}


_REMEDIES: Final[Mapping[str, str]] = {
    "unauthorized": "send it as Authorization: Bearer KEY",
    "login_expired": "log in again",
}


class RequireKey:
    """Middleware: lets nobody call `/v1` without a key that may, before anything of the request is read.

    Nor does it let anybody see a page without one: there a login stands for it. A login opens no route of `/v1`. While
    there are no keys at all, everybody may.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, failures: KeyFailures, quotas: KeyQuotas, sessions: Sessions
    ) -> None:
        self.app = app
        self.keys = keys
        self.failures = failures
        self.quotas = quotas
        self.sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and ((scope["path"] + "/").startswith("/v1/") or needs_login(scope["path"]))
        if not guarded:
            await self.app(scope, receive, send)
            return
        refusal = await self._enter(scope)
        await (refusal or self.app)(scope, receive, send)

    async def _enter(self, scope: Scope) -> Response | None:
        """Note in the scope which key asks; the answer to one that may not."""
        try:
            await self.keys.refresh()
            if not self.keys:
                return None
            authorization = Headers(scope=scope).get("authorization", "")
            session = _session(scope) if needs_login(scope["path"]) and not authorization else None
            try:
                identity = await (self._of_session(session) if session else self._find(authorization))
            except KeyRefused as refused:
                return self._refuse(refused, authorization, (scope.get("client") or ("",))[0])
        except Unavailable as error:
            return problem(503, "Something that is needed cannot be reached", error.message, error.code)
        needed = scope_needed(scope["method"], scope["path"])
        if needed not in identity.scopes:
            return _out_of_scope(needed, identity, scope["method"])
        if (limit := identity.quotas.requests_per_minute) is not None:
            wait = await run_in_threadpool(self.quotas.take_request, identity.owner, limit)
            if wait is not None:
                detail = f"this key may send {limit} requests a minute, and has: wait {wait} s"
                return problem(
                    429, "Too many requests", detail, "too_many_requests", headers={"Retry-After": str(wait)}
                )
        scope.setdefault("state", {})["identity"] = identity
        return None

    async def _find(self, authorization: str) -> Identity:
        try:
            return self.keys.find(authorization)
        except KeyRefused:
            if not authorization:
                raise
            await self.keys.refresh(UNKNOWN_SECONDS)
            return self.keys.find(authorization)

    async def _of_session(self, session: str) -> Identity:
        digest = await run_in_threadpool(self.sessions.find, session)
        if digest is None:
            raise KeyRefused("login_expired", "was given for a login that has expired")
        return self.keys.of_digest(digest)

    def _refuse(self, refused: KeyRefused, authorization: str, client: str) -> Response:
        if authorization and not self.failures.admit(client):
            detail = (
                f"more than {self.failures.per_minute} wrong API keys a minute came from this address: wait, and "
                "send a right one"
            )
            return problem(429, "Too many wrong API keys", detail, "too_many_failures")
        detail = f"the API key {refused.why}: " + _REMEDIES.get(refused.code, "send another")
        return problem(401, _TITLES[refused.code], detail, refused.code, headers={"WWW-Authenticate": "Bearer"})


def scope_needed(method: str, path: str) -> KeyScope:
    """The scope that a key needs for a request."""
    if path != OWN_PATH and (path + "/").startswith(tuple(f"{root}/" for root in ADMIN_PATHS)):
        return "admin"
    return "read" if method in READING else "submit"


def _out_of_scope(needed: KeyScope, identity: Identity, method: str) -> Response:
    held = ", ".join(scope for scope in SCOPES if scope in identity.scopes) or "none"
    detail = f"{method} here needs a key with the scope {needed}; this one has {held}: use another, or ask for one"
    return problem(403, "The key may not do this", detail, "missing_scope")


def _session(scope: Scope) -> str | None:
    return cookie_parser(Headers(scope=scope).get("cookie", "")).get(COOKIE)


async def _identity(request: Request) -> Identity | None:
    identity: Identity | None = getattr(request.state, "identity", None)
    return identity


Asking = Annotated[Identity | None, Depends(_identity)]
"""The key that a request bears; None where there are no keys."""


async def _caller(identity: Asking) -> str | None:
    return identity.owner if identity else None


Caller = Annotated[str | None, Depends(_caller)]
"""The owner of what the request creates, who sees no other's jobs; None where there are no keys."""


async def _viewer(identity: Asking) -> str | None:
    return None if identity is None or identity.is_admin else identity.owner


Viewer = Annotated[str | None, Depends(_viewer)]
"""The owner who sees the teachers, datasets and models that are its own, shared or nobody's; None sees all of them."""
