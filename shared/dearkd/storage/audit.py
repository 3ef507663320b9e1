"""The audit log: every change that a client made, one object each, which nothing changes or deletes.

audit/{day}/{id}.json    days of UTC; ids sort by time
"""

import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from dearkd.errors import NotFound
from dearkd.identifiers import is_id
from dearkd.storage.catalog import manifest_bytes
from dearkd.storage.objects import Storage

ROOT: Final = "audit"

log = logging.getLogger(__name__)


class AuditRecord(BaseModel):
    """A change that a client made."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    at: datetime
    key: str | None
    """The key that asked, as the owner of what it creates: the id of a key, or a digest of one from the environment.
    None: no keys were in force."""
    key_name: str | None = None
    address: str | None
    """The address that the request came from; behind a proxy as the proxy tells it, where that is trusted."""
    method: str
    path: str
    status: int
    resource: str | None = None
    """The path of what was created."""
    request_id: str | None = None


class AuditLog:
    """All records of a storage. Every method raises `Unavailable` when storage cannot be reached."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def add(self, record: AuditRecord) -> None:
        self.storage.create(f"{ROOT}/{record.at:%Y-%m-%d}/{record.id}.json", manifest_bytes(record))

    def page(self, *, limit: int, after: str | None = None) -> tuple[list[AuditRecord], bool]:
        """Up to `limit` records, newest first, that are older than `after`; and whether there are more."""
        found: list[AuditRecord] = []
        for key in self._newest_first():
            identifier = key.rpartition("/")[2].removesuffix(".json")
            if not is_id(identifier, "aud") or (after is not None and identifier >= after):
                continue
            if len(found) == limit:
                return found, True
            try:
                found.append(AuditRecord.model_validate_json(self.storage.read(key)))
            except (NotFound, ValidationError) as error:
                log.error("left out of the audit log's page: %s (%s)", key, error)
        return found, False

    def _newest_first(self) -> Iterator[str]:
        for day in reversed(self.storage.children(ROOT)):
            yield from reversed([stored.key for stored in self.storage.objects(f"{ROOT}/{day}")])
