"""API keys that were created while the server ran: a record each, `keys/{id}.json`, with hashes of the secrets alone.

They lie in storage, which outlives Redis. A record is never deleted: that there once were keys is what keeps a server
closed whose last key was revoked.
"""

import logging
import secrets
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from dearkd.choices import Scope
from dearkd.documents import Document, as_written, read_document
from dearkd.errors import Conflict, NotFound, Unreadable
from dearkd.identifiers import is_id, new_id
from dearkd.specs.requests import Quotas
from dearkd.storage.catalog import manifest_bytes
from dearkd.storage.object_stores import StoredObject
from dearkd.storage.objects import Storage

ROOT: Final = "keys"
SECRET_PREFIX: Final = "dearkd_"
"""The beginning of every secret, by which scanners of leaked secrets know it."""
SETTLED_SECONDS: Final = 60.0
"""For so long a record is read again at each look, though it seems to be the same."""

log = logging.getLogger(__name__)


class Secret(BaseModel):
    """The hash of a secret, hexadecimal, and the time until which it is taken; None: as long as the key."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    until: AwareDatetime | None = None


class KeyRecord(Document):
    """An API key, without its secret."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    """The owner of what the key creates; it stays when the secret is rotated."""
    name: str
    scopes: list[Scope]
    quotas: Quotas = Quotas()
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
    secrets: list[Secret] = Field(min_length=1)


class KeyRecords:
    """All API keys of a storage. Every method raises `Unavailable` when storage cannot be reached."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._read: dict[str, tuple[StoredObject, KeyRecord]] = {}
        self._since: dict[StoredObject, float] = {}
        """Times at which what is listed was first seen, by the monotonic clock: the storage's clock is another."""

    def all(self) -> tuple[list[KeyRecord], bool]:
        """Every key, newest first, and whether there is any, which need not be one that can be read.

        What has not changed since the last call is not read again. A damaged record lets nobody in: it is left out.
        """
        listed = list(self.storage.objects(ROOT))
        found = {}
        for stored in reversed(listed):
            known = self._read.get(stored.key)
            try:
                record = known[1] if known is not None and known[0] == stored else self._load(stored.key)
            except (NotFound, Unreadable) as error:
                log.error("no API key can be read from %s: %s", stored.key, error)
                continue
            found[stored.key] = (stored, record)
        # A bucket tells times in seconds: what is written twice in one, as long as before, looks unchanged.
        now = time.monotonic()
        self._since = {stored: self._since.get(stored, now) for stored in listed}
        self._read = {key: read for key, read in found.items() if now - self._since[read[0]] >= SETTLED_SECONDS}
        return [record for _, record in found.values()], bool(listed)

    def get(self, identifier: str) -> KeyRecord:
        """The record of a key. Raises `NotFound`, or `Unreadable` if it is damaged."""
        if not is_id(identifier, "key"):
            raise NotFound(f"there is no {identifier!r:.80} in keys")
        return self._load(_place(identifier))

    def create(
        self, *, name: str, scopes: Sequence[Scope], quotas: Quotas, expires_at: datetime | None, at: datetime
    ) -> tuple[KeyRecord, str]:
        """Create a key; returns it with its secret, which is kept nowhere."""
        secret = new_secret()
        record = KeyRecord(
            id=new_id("key"),
            name=name,
            scopes=list(scopes),
            quotas=quotas,
            created_at=at,
            expires_at=expires_at,
            secrets=[Secret(sha256=digest_of(secret))],
        )
        self.storage.create(_place(record.id), manifest_bytes(as_written(record)))
        return record, secret

    def rotate(self, identifier: str, *, grace: timedelta, at: datetime) -> tuple[KeyRecord, str]:
        """Give a key a new secret; those of before are taken until the grace is over.

        Raises:
            NotFound: if there is no such key.
            Conflict: if it was revoked.
        """
        record = self.get(identifier)
        if record.revoked_at is not None:
            raise Conflict(f"{identifier} was revoked: create another key", code="key_revoked")
        secret, until = new_secret(), at + grace
        before = [
            old.model_copy(update={"until": min(until, old.until or until)})
            for old in record.secrets
            if grace and (old.until is None or old.until > at)
        ]
        return self._write(record, secrets=[*before, Secret(sha256=digest_of(secret))]), secret

    def revoke(self, identifier: str, *, at: datetime) -> KeyRecord:
        """Let a key be taken no more; one that was revoked stays as it is. Raises `NotFound`."""
        record = self.get(identifier)
        return record if record.revoked_at is not None else self._write(record, revoked_at=at)

    def _write(self, record: KeyRecord, **changes: object) -> KeyRecord:
        changed = record.model_copy(update=changes)
        self.storage.put(_place(record.id), manifest_bytes(as_written(changed)))
        self._read.pop(_place(record.id), None)
        return changed

    def _load(self, key: str) -> KeyRecord:
        try:
            text = self.storage.read(key)
        except NotFound:
            raise NotFound(f"there is no {key.rpartition('/')[2].removesuffix('.json')!r} in keys") from None
        return read_document(
            KeyRecord, text, key, "restore it from a backup, or remove the file and create another key"
        )


def new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    return sha256(secret.encode("latin-1", errors="replace")).hexdigest()


def _place(identifier: str) -> str:
    return f"{ROOT}/{identifier}.json"
