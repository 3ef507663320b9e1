"""Webhooks of jobs: whom a job tells of its steps, and the secret by which it proves that it is dearkd who tells."""

import base64
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from dearkd.choices import Status
from dearkd.specs.base import FIRST_ERROR, Spec

SECRET_PREFIX = "whsec_"


def check_target(url: str) -> str:
    """Raises `ValueError` unless this is an address to which a webhook may be sent."""
    form = "use http://host/path or https://host/path"
    if not re.fullmatch(r"[\x21-\x7e]+", url) or "\\" in url:
        raise ValueError(f"it holds blanks, backslashes or what is not ASCII: {form}, with others percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{error}: {form}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"it names no host, no port that there is, or another scheme: {form}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it may not hold a user or a password: the signature says who sends")
    if "#" in url:
        raise ValueError("it may not hold a fragment (#…), which is never sent: leave it out")
    return url


def secret_key(secret: str) -> bytes:
    """The key that a secret of Standard Webhooks stands for.

    Raises:
        ValueError: if it is none; the message does not repeat it.
    """
    rule = f"a secret is {SECRET_PREFIX} and the base64 of 24 to 64 random bytes"
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(f"{rule}: this does not begin with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        raise ValueError(f"{rule}: this is no base64") from None
    if not 24 <= len(key) <= 64:
        raise ValueError(f"{rule}: this has {len(key)}")
    return key


def _check_events(events: list[Status]) -> list[Status]:
    if len(set(events)) != len(events):
        raise ValueError("a status is listed twice: list each once")
    return events


def _check_secret(secret: str) -> str:
    secret_key(secret)
    return secret


class WebhookSpec(Spec):
    """Whom a job tells of its steps, and of which."""

    url: Annotated[str, AfterValidator(check_target)] = Field(max_length=2000)
    """The address to which a POST is sent. Who may see the job sees it; what the job makes does not hold it."""
    events: Annotated[list[Status], FIRST_ERROR, AfterValidator(_check_events)] = Field(
        default=["succeeded", "failed", "canceled"], min_length=1
    )
    """The statuses that are told of when the job enters them."""


class WebhookRequest(WebhookSpec):
    """A webhook as it is asked for, with its secret, which is never shown again."""

    # Excluded, so that no spec, and nothing that is made of one, can hold it.
    secret: Annotated[str, AfterValidator(_check_secret)] = Field(
        max_length=200, exclude=True, repr=False, json_schema_extra={"writeOnly": True}
    )
    """`whsec_` and the base64 of 24 to 64 random bytes: the key of the signatures, as in Standard Webhooks."""
