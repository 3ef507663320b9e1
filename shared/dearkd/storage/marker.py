"""The marker of a storage root: an object with an id, by which a root proves that it is the storage that is known.

What a root does not hold is "not there" only if the root is the storage: a folder whose disk is not mounted holds
nothing either. Redis remembers the id. A root is made a storage once, when it is empty and no id is known; one that
holds folders of dearkd's but no marker, as all did before there were markers, gets one. Anything else is an outage.
"""

import json
import secrets
import time
from datetime import UTC, datetime
from typing import Protocol, cast

from dearkd.errors import Unavailable
from dearkd.redis_client import Redis, job_index
from dearkd.storage.object_stores import AlreadyExists

KEY = "dearkd-storage.json"
REDIS_KEY = "dearkd:storage"

ROOTS = ("audit", "datasets", "jobs", "keys", "models", "runs", "teachers", "tmp")
"""The folders of a root in which dearkd keeps its objects."""

REMEMBERED_SECONDS = 30.0
"""The time after which Redis is told the id again, in case that it was emptied."""

_REMEDY = (
    "mount the disk or bring the folder back; if it is meant to be another storage from now on, say so with "
    "`dearkd doctor --adopt-storage` (with `dearkd up`: `dearkd up --adopt-storage`)"
)


class Root(Protocol):
    """The side of a storage root that its marker sees. Methods raise `Unavailable` when it cannot be reached."""

    trust_seconds: float
    """The seconds for which the root is believed to be what it was when it was looked at last."""

    def read_marker(self) -> bytes | None: ...

    def create_marker(self, data: bytes) -> None:
        """Raises AlreadyExists if there is one."""

    def entries(self) -> list[str]:
        """The names of what lies directly in the root; none if there is no root."""


class KnownStorage:
    """The id of the storage as Redis remembers it. Raises `Unavailable` (`redis_unavailable`) without Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def identifier(self) -> str | None:
        found = cast("bytes | None", self._redis.get(REDIS_KEY))
        return found.decode() if found else None

    def learn(self, identifier: str) -> str:
        """Remember an id, unless one is known; returns the one that is known afterwards."""
        self._redis.set(REDIS_KEY, identifier, nx=True)
        return self.identifier() or identifier

    def replace(self, identifier: str) -> None:
        self._redis.set(REDIS_KEY, identifier)

    def has_jobs(self) -> bool:
        return bool(self._redis.exists(*(job_index(kind) for kind in ("synthesis", "training"))))


class Marker:
    """The proof that a root is the storage, made again whenever it is due.

    Args:
        root: to be proved.
        known: what Redis knows; None where there is no Redis: then what this process has seen counts.
        fresh: whether an empty root may become a storage.
    """

    def __init__(self, root: Root, known: KnownStorage | None, *, fresh: bool) -> None:
        self._root = root
        self._known = known
        self._fresh = fresh
        self._id: str | None = None
        self._creates_once = False
        self._proved_until = self._remembered_until = 0.0

    def prove(self, *, writing: bool = False, again: bool = False) -> None:
        """Return if the root is the storage, or holds nothing and nothing is known that it should.

        Args:
            writing: whether something is to be written: makes an empty root a storage.
            again: look, even if it was looked at a moment ago: something is missing.

        Raises:
            Unavailable: `storage_unavailable` if it is not, or cannot be reached.
        """
        if not again and time.monotonic() < self._proved_until:
            return
        found = self._read() or self._first(writing)
        if found is None:
            return
        if found != self._id or time.monotonic() >= self._remembered_until:
            self._agree(found, writing)
        self._id = found
        self._proved_until = time.monotonic() + self._root.trust_seconds

    def adopt(self) -> str:
        """Make the root the storage from now on, whatever was known before; returns its id."""
        found = self._read() or self._create()
        if self._known is not None:
            self._known.replace(found)
        self._id = found
        return found

    def require_creates_once(self) -> None:
        """Refuse a store that lets what is there be created again: writers would replace each other's objects.

        Tried once, on the marker: a store that lets it be created again has written the same bytes anew.

        Raises:
            Unavailable: `storage_unavailable` if the store is such a one, or cannot be reached.
        """
        if self._creates_once:
            return
        if (data := self._root.read_marker()) is not None:
            try:
                self._root.create_marker(data)
            except AlreadyExists:
                pass
            else:
                raise _outage(
                    "its store lets an object be created twice (it ignores If-None-Match: * on PUT), so that writers "
                    "would replace each other's objects: use one that honours it; `dearkd doctor` tries what a store "
                    "must do"
                )
        self._creates_once = True

    def _read(self) -> str | None:
        data = self._root.read_marker()
        if data is None:
            return None
        try:
            return str(json.loads(data)["id"])
        except (ValueError, KeyError, TypeError):
            raise _outage(
                f"its marker {KEY} cannot be read: restore it from a copy, or delete it and {_REMEDY}"
            ) from None

    def _agree(self, found: str, writing: bool) -> None:
        try:
            expected = self._id if self._known is None else self._known.learn(found)
        except Unavailable:
            # While Redis is away, what this process has seen counts, and who only reads may believe a marker.
            if self._id is None and writing:
                raise
            if self._id not in (None, found):
                raise
            return
        if expected is not None and expected != found:
            raise _outage(f"another storage lies there: its marker {KEY} says {found}, known is {expected}; {_REMEDY}")
        self._remembered_until = time.monotonic() + REMEMBERED_SECONDS

    def _first(self, writing: bool) -> str | None:
        """The id of a root without a marker, which gets one if it may; None if it stays without, and holds nothing."""
        expected = (self._known.identifier() if self._known is not None else None) or self._id
        if expected is not None:
            if (found := self._read()) is not None:
                return found  # made by another process between our two looks
            raise _outage(f"the marker {KEY} of {expected} is gone: it is not mounted, moved or emptied; {_REMEDY}")
        entries = self._root.entries()
        if KEY in entries and (found := self._read()) is not None:
            return found
        if not any(name in ROOTS for name in entries):
            # A fresh disk, and what file managers leave.
            if others := [name for name in entries if not name.startswith((".", KEY)) and name != "lost+found"]:
                raise _outage(
                    f"it has no marker {KEY}, and holds other things than dearkd's ({others[0]!r} …): name an empty "
                    "folder or prefix, or take it with `dearkd doctor --adopt-storage`"
                )
            if not self._fresh:
                raise _outage(
                    f"it has no marker {KEY} and is empty: it is not mounted, or dearkd uses another; {_REMEDY}"
                )
            if self._known is not None and self._known.has_jobs():
                raise _outage(f"it is empty, but Redis knows jobs: it is not mounted, moved or emptied; {_REMEDY}")
            if not writing:
                return None
        elif not writing and self._known is None:
            return None  # who only reads needs no right to write
        return self._create()

    def _create(self) -> str:
        identifier = f"storage-{secrets.token_hex(8)}"
        text = json.dumps(
            {"id": identifier, "created_at": datetime.now(UTC).isoformat(), "about": "dearkd's storage; keep this file"}
        )
        try:
            self._root.create_marker(text.encode())
        except AlreadyExists:
            found = self._read()  # somebody else was first
            if found is None:
                raise _outage(f"its marker {KEY} comes and goes; try again") from None
            return found
        # A store that looks before it creates lets two writers win: the last one's counts.
        return self._read() or identifier


def _outage(what: str) -> Unavailable:
    return Unavailable(f"storage cannot be used: {what}", code="storage_unavailable")
