"""API keys: those of the environment, and those that were created since."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Final

from starlette.concurrency import run_in_threadpool

from dearkd.choices import Scope
from dearkd.errors import CorruptData, InvalidInput, Unavailable
from dearkd.jobs.model import now, owner_of
from dearkd.settings import Settings
from dearkd.specs.requests import Quotas
from dearkd.storage.api_keys import KeyRecord, KeyRecords

MIN_CHARACTERS: Final = 16
REFRESH_SECONDS: Final = 5.0
"""The age at which what is known of keys is read again: so late at most another server's revocation counts here."""
WAIT_SECONDS: Final = 2.0
"""Requests wait so long for that; where storage does not answer, one request does."""
UNKNOWN_SECONDS: Final = 0.5
"""The same where a key is unknown, which another server may have created a moment ago."""
_UNKNOWN: Final = "is none of this server's"
_REMEDY: Final = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"

SCOPES: Final[Mapping[Scope, frozenset[Scope]]] = {
    "read": frozenset({"read"}),
    "submit": frozenset({"read", "submit"}),
    "admin": frozenset({"read", "submit", "admin"}),
}
"""Scopes that each includes."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """The key that a request bears."""

    owner: str
    """The owner of what it creates."""
    name: str | None = None
    scopes: frozenset[Scope] = SCOPES["submit"]
    quotas: Quotas = field(default_factory=Quotas)
    record: KeyRecord | None = None
    """None for a key of the environment."""

    @property
    def is_admin(self) -> bool:
        return "admin" in self.scopes


class KeyRefused(Exception):
    """A key that is let in no more, or never was; `code` is for programs."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


@dataclass(frozen=True, slots=True)
class Keys:
    """The sha256 digests of the configured keys; the keys themselves are not kept. Falsy if there are none."""

    digests: tuple[bytes, ...]
    admins: frozenset[str] = field(default=frozenset())
    """The owners whose keys have the scope `admin`."""

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

    def identities(self) -> dict[bytes, Identity]:
        """Each key's identity by its digest. Nothing of a key can be told from the time that looking one up takes."""
        return {
            digest: Identity(owner, scopes=SCOPES["admin" if owner in self.admins else "submit"])
            for digest in self.digests
            for owner in [owner_of(digest)]
        }


class KeyRing:
    """All keys that count: those of the environment, and those that storage knows. Falsy if there are none.

    Where storage cannot be reached, what was read last goes on counting: no key can be revoked then either.

    Args:
        configured: the keys of the environment.
        records: all others.
    """

    def __init__(self, configured: Keys, records: KeyRecords) -> None:
        self._configured = configured.identities()
        self._records = records
        self._created: dict[bytes, tuple[KeyRecord, datetime | None]] = {}
        self._any = False
        self._read_at: float | None = None
        self._one_reads = threading.Lock()
        self._reading: asyncio.Task[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._configured) or self._any

    async def refresh(self, seconds: float = REFRESH_SECONDS) -> None:
        """Read again what is older than that, and wait for it a little.

        Raises:
            Unavailable: if nothing was ever read, since storage cannot be reached: then nobody is let in.
        """
        if self._read_at is not None and time.monotonic() - self._read_at < seconds:
            return
        waits = self._reading is None
        if self._reading is None:
            self._reading = asyncio.create_task(run_in_threadpool(self._try_to_read))
            self._reading.add_done_callback(self._has_read)
        if waits or self._read_at is None:
            await asyncio.wait([self._reading], timeout=WAIT_SECONDS)
        if self._read_at is None:
            raise Unavailable("the API keys cannot be read from storage: try again later", code="storage_unavailable")

    def read(self) -> None:
        """Read all keys; here, where one was created or changed. Raises `Unavailable`."""
        with self._one_reads:
            records, self._any = self._records.all()
            self._created = {
                bytes.fromhex(secret.sha256): (record, secret.until) for record in records for secret in record.secrets
            }
            self._read_at = time.monotonic()

    def _try_to_read(self) -> None:
        try:
            self.read()
        except (Unavailable, CorruptData) as error:
            log.warning("the API keys could not be read: %s", error)
            if self._read_at is not None:
                self._read_at = time.monotonic()

    def _has_read(self, _: "asyncio.Task[None]") -> None:
        self._reading = None

    def find(self, authorization: str) -> Identity:
        """The key in an `Authorization` header.

        Raises:
            KeyRefused: `unauthorized` if it is none of these, `key_expired`, `key_revoked`.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise KeyRefused("unauthorized", _UNKNOWN if authorization else "is missing")
        return self.of_digest(sha256(token.strip().encode("latin-1")).digest())

    def of_digest(self, digest: bytes) -> Identity:
        """The key of a sha256 digest. Raises `KeyRefused` as `find` does."""
        if (configured := self._configured.get(digest)) is not None:
            return configured
        if (created := self._created.get(digest)) is not None:
            return _identity(*created, at=now())
        raise KeyRefused("unauthorized", _UNKNOWN)


def _identity(record: KeyRecord, until: datetime | None, *, at: datetime) -> Identity:
    if record.revoked_at is not None:
        raise KeyRefused("key_revoked", f"{record.id} was revoked")
    if until is not None and until <= at:
        raise KeyRefused("key_revoked", f"is an old one of {record.id}, which was rotated")
    if record.expires_at is not None and record.expires_at <= at:
        raise KeyRefused("key_expired", f"{record.id} has expired")
    scopes = frozenset[Scope]().union(*(SCOPES[scope] for scope in record.scopes))
    return Identity(record.id, record.name, scopes, record.quotas, record)


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
