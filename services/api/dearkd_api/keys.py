"""API keys: they decide who may call the API, and which jobs a caller sees."""

import hmac
import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Final

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from dearkd.errors import InvalidInput
from dearkd.jobs.model import owner_of
from dearkd.settings import Settings
from dearkd_api.key_failures import KeyFailures
from dearkd_api.problems import problem

MIN_CHARACTERS: Final = 16
_REMEDY: Final = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


@dataclass(frozen=True, slots=True)
class Keys:
    """The sha256 digests of the configured keys; the keys themselves are not kept. Falsy if there are none."""

    digests: tuple[bytes, ...]
    admins: frozenset[str] = field(default=frozenset())
    """The owners whose keys may delete any teacher, dataset and model. They do not see others' jobs either."""

    @classmethod
    def configured(cls, settings: Settings) -> "Keys":
        """The keys of `DEARKD_API_KEYS` and of `DEARKD_ADMIN_KEYS`; a key may be in both.

        Raises:
            InvalidInput: see `parse`.
        """
        users = cls.parse(settings.api_keys)
        admins = cls.parse(settings.admin_keys, name="DEARKD_ADMIN_KEYS")
        digests = tuple(dict.fromkeys(users.digests + admins.digests))
        return cls(digests, frozenset(owner_of(digest) for digest in admins.digests))

    @classmethod
    def parse(cls, text: str, *, name: str = "DEARKD_API_KEYS") -> "Keys":
        """Parse a setting: keys separated by commas, each as it is or as `sha256:` and the hex digits of its hash.

        Raises:
            InvalidInput: if a key is shorter than 16 characters or cannot be sent in a header, a hash is malformed, or
                a text that is not empty holds no key. The error names the key's place, never the key.
        """
        entries = [entry.strip() for entry in text.split(",") if entry.strip()]
        if text and not entries:
            raise InvalidInput(f"{name} is set, but holds no key: unset it, or give keys by commas")
        return cls(tuple(_digest(entry, f"key {place} of {name}") for place, entry in enumerate(entries, 1)))

    def __bool__(self) -> bool:
        return bool(self.digests)

    def owner(self, authorization: str) -> str | None:
        """The owner of the key in an `Authorization` header; None if it is none of these keys."""
        scheme, _, token = authorization.partition(" ")
        digest = sha256(token.strip().encode("latin-1")).digest()
        # All of them, so that the time tells nothing of which matched.
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        return owner_of(digest) if any(matches) and scheme.lower() == "bearer" else None

    def is_admin(self, owner: str | None) -> bool:
        return owner in self.admins


def _digest(entry: str, place: str) -> bytes:
    if entry.startswith("sha256:"):
        if not re.fullmatch(r"[0-9a-fA-F]{64}", entry.removeprefix("sha256:")):
            raise InvalidInput(f"{place} begins with sha256: but not with the 64 hex digits of a hash behind it")
        return bytes.fromhex(entry.removeprefix("sha256:"))
    if len(entry) < MIN_CHARACTERS:
        raise InvalidInput(f"{place} has {len(entry)} characters, at least {MIN_CHARACTERS} are needed: {_REMEDY}")
    if not re.fullmatch(r"[\x21-\x7e]+", entry):
        raise InvalidInput(f"{place} has blanks or characters outside ASCII, which no header bears: {_REMEDY}")
    return sha256(entry.encode()).digest()


class RequireKey:
    """Middleware: lets nobody call `/v1` without one of the keys, before anything of the request is read."""

    def __init__(self, app: ASGIApp, keys: Keys, failures: KeyFailures) -> None:
        self.app = app
        self.keys = keys
        self.failures = failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] + "/").startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization", "")
        owner = self.keys.owner(authorization)
        if owner is None:
            if authorization and not self.failures.admit((scope.get("client") or ("",))[0]):
                detail = (
                    f"more than {self.failures.per_minute} wrong API keys a minute came from this address: wait, and "
                    "send a right one"
                )
                limited = problem(429, "Too many wrong API keys", detail, "too_many_failures")
                await limited(scope, receive, send)
                return
            what = "is none of this server's" if authorization else "is missing"
            detail = f"the API key {what}: send it as Authorization: Bearer KEY"
            refusal = problem(
                401, "An API key is needed", detail, "unauthorized", headers={"WWW-Authenticate": "Bearer"}
            )
            await refusal(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        await self.app(scope, receive, send)


async def _caller(request: Request) -> str | None:
    owner: str | None = getattr(request.state, "owner", None)
    return owner


Caller = Annotated[str | None, Depends(_caller)]
"""The owner whose key the request bears; None where no keys are configured."""
