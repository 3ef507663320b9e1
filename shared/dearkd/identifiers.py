"""Identifiers that sort by creation time: `syn-0f3k9v2c41-7m2qx8ds`."""

import re
import secrets
import time
from datetime import datetime
from typing import Literal

Kind = Literal["tch", "syn", "run", "ds", "mdl", "chk", "prd", "key", "aud", "tmp"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, in lower case: sorts as its numbers do
_BEHIND = r"-[0-9a-hjkmnp-tv-z]{11}-[0-9a-hjkmnp-tv-z]{8}"
_PATTERN = re.compile(r"(tch|syn|run|ds|mdl|chk|prd|key|aud|tmp)" + _BEHIND)


def _base32(number: int, digits: int) -> str:
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(5 * (digits - 1), -1, -5))


def new_id(kind: Kind) -> str:
    """A new identifier: kind, microseconds since 1970 (55 bits, enough until the year 3111), 40 random bits."""
    return f"{kind}-{_base32(time.time_ns() // 1000, 11)}-{_base32(secrets.randbits(40), 8)}"


def earliest_id(kind: Kind, moment: datetime) -> str:
    """Text that sorts just before every identifier made at that moment or later, and behind all earlier ones."""
    return f"{kind}-{_base32(max(0, round(moment.timestamp() * 1e6)), 11)}"


def sibling(identifier: str, kind: Kind) -> str:
    """The identifier of what a job makes: the job's own, under another kind. So a retry names the same result."""
    return f"{kind}-{identifier.partition('-')[2]}"


def is_id(text: str, kind: Kind) -> bool:
    """Tell whether `text` is an identifier of that kind, and so safe as a part of a storage key."""
    return text.startswith(f"{kind}-") and _PATTERN.fullmatch(text) is not None


def pattern_of(kind: Kind) -> str:
    """The regular expression of the identifiers of a kind, for schemas: what it matches from end to end is one."""
    return f"^{kind}{_BEHIND}$"
