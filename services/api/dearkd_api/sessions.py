"""Logins: a browser holds a random token, Redis the hash of the API key that it stands for."""

import hmac
import secrets
from hashlib import sha256
from typing import Final, cast

from dearkd.redis_client import Redis

COOKIE: Final = "dearkd_session"
SECONDS: Final = 12 * 3600
"""A login that is not used for so long has expired."""
_SECRET: Final = "dearkd:form-secret"


class Sessions:
    """The logins of all browsers, and the tokens of their forms. Raises `Unavailable` when Redis cannot be reached.

    Neither the tokens of logins nor API keys are in Redis, but their hashes alone.
    """

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def begin(self, digest: bytes) -> str:
        """The token of a new login with the key of that sha256 digest."""
        token = secrets.token_urlsafe(32)
        self.redis.set(_record(token), digest.hex(), ex=SECONDS)
        return token

    def find(self, token: str) -> bytes | None:
        """The digest of the key that a login stands for, and from now on for as long again; None if it has expired."""
        found = cast("bytes | None", self.redis.getex(_record(token), ex=SECONDS))
        return None if found is None else bytes.fromhex(found.decode())

    def end(self, token: str) -> None:
        """Let a login be none any more."""
        self.redis.delete(_record(token))

    def form_token(self, session: str | None) -> str:
        """The token that a form of this login must bear, or of a browser that needs none: no foreign page knows it."""
        secret = cast("bytes | None", self.redis.get(_SECRET))
        if secret is None:
            self.redis.set(_SECRET, secrets.token_bytes(32), nx=True)
            secret = cast(bytes, self.redis.get(_SECRET))
        return hmac.new(secret, (session or "").encode(), sha256).hexdigest()


def _record(token: str) -> str:
    return f"dearkd:session:{sha256(token.encode()).hexdigest()}"
