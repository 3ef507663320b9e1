"""Finding and removing what nobody needs any more: abandoned uploads, and what jobs that came to nothing left behind.

What a manifest names is never touched, and neither is anything of a job that has not ended, or that failed or was
canceled less than the retention time ago: it may still be retried, and goes on from what lies there.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.documents import FIELD, require_known
from dearkd.errors import CorruptData, NotFound, Unreadable
from dearkd.identifiers import is_id, sibling
from dearkd.jobs.inspections import TICKET_SECONDS
from dearkd.jobs.model import Job, kind_of, live_key
from dearkd.jobs.settlement import final_key, read_job
from dearkd.storage.catalog import Model, models, teachers
from dearkd.storage.marker import ROOTS
from dearkd.storage.objects import Storage, StoredObject

ABANDONED_SECONDS = float(TICKET_SECONDS)
"""The age after which nobody works on an upload, a registration, or a file that is being written."""

UPLOADED = ("teachers", "tmp")
"""Folders that no job writes to: there, age decides."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """An object that may go, and why."""

    key: str
    bytes: int
    reason: str
    leftover: StoredObject | None = None
    """The file, where it is no object but what a write that never ended left."""


class Collector:
    """One look through a storage: `find` names what may go, `remove` removes it after looking again.

    Args:
        storage: where to look.
        retention_seconds: how long what failed and canceled jobs left is kept.
        now: the time that ages are counted to, with its zone.
    """

    def __init__(self, storage: Storage, *, retention_seconds: float, now: datetime) -> None:
        self.storage = storage
        self.retention = timedelta(seconds=retention_seconds)
        self.now = now

    def find(self) -> Iterator[Garbage]:
        """All garbage, sorted by prefix. Raises `Unavailable` when storage cannot be reached."""
        named = self._named()
        for stored in self.storage.leftovers():
            if self._abandoned(stored):
                yield Garbage(stored.key, stored.size, "a write that never ended", leftover=stored)
        for root in ROOTS:
            for identifier in self.storage.children(root):
                reason = self._reason(root, identifier)
                if reason is None:
                    continue
                prefix = f"{root}/{identifier}"
                # What a job was and how it ended stays.
                gone = (f"{prefix}/shards/", live_key(identifier)) if root == "jobs" else (prefix,)
                for stored in self.storage.objects(prefix):
                    if (
                        stored.key.startswith(gone)
                        and stored.key not in named
                        and (root not in UPLOADED or self._abandoned(stored))
                    ):
                        yield Garbage(stored.key, stored.size, reason)

    def remove(self, garbage: Garbage) -> bool:
        """Remove an object, unless it is no garbage any more; says whether it did."""
        if garbage.leftover is not None:
            self.storage.delete_leftover(garbage.leftover)
            return True
        root, _, rest = garbage.key.partition("/")
        maker = _maker(root, rest.partition("/")[0])
        # A retry deletes `final.json` before anything else: then the job goes on from what lies here.
        if maker is not None and self._end(maker) is None:
            return False
        self.storage.delete(garbage.key)
        return True

    def _reason(self, root: str, identifier: str) -> str | None:
        """The reason why what lies under an identifier may go (of a job: its notes on shards); None if it may not."""
        if root in UPLOADED:
            finished = root == "teachers" and teachers(self.storage).exists(identifier)
            return None if finished else "of an upload that was never registered"
        maker = _maker(root, identifier)
        end = self._end(maker) if maker is not None else None
        if end is None or end.finished_at is None:
            return None
        if root == "jobs" and end.status == "succeeded":
            return f"a note of {maker}, which succeeded"
        if end.status == "succeeded" or self.now - end.finished_at < self.retention:
            return None
        if root == "datasets" and datasets(self.storage).exists(identifier):
            return None
        if root == "models" and models(self.storage).exists(identifier):
            return None
        return f"left by {maker}, which {'was canceled' if end.status == 'canceled' else 'failed'}"

    def _end(self, job: str) -> Job | None:
        """The final record of a job; None where it has not ended, or the record cannot be read."""
        try:
            ended = read_job(self.storage, final_key(job))
        except (NotFound, Unreadable):
            return None
        return ended if ended.terminal else None

    def _abandoned(self, stored: StoredObject) -> bool:
        return (self.now - stored.modified).total_seconds() > ABANDONED_SECONDS

    def _named(self) -> set[str]:
        """Keys that a manifest names, wherever they lie. Raises `NewerSchema` where a newer one may name others."""
        found: set[str] = set()
        for root, manifest, kind in (("datasets", "dataset.json", DatasetManifest), ("models", "model.json", Model)):
            for identifier in self.storage.children(root):
                try:
                    content = json.loads(self.storage.read(f"{root}/{identifier}/{manifest}"))
                except NotFound:
                    continue
                except ValueError:
                    key = f"{root}/{identifier}/{manifest}"
                    raise CorruptData(f"{key} cannot be read, nor what it names: mend or delete it first") from None
                require_known(content.get(FIELD, 1), kind.newest, f"{root}/{identifier}/{manifest}")
                prefix = content.get("prefix", f"{root}/{identifier}")
                found |= {f"{prefix}/{file['name']}" for file in content.get("shards", content.get("files", []))}
        return found


def _maker(root: str, identifier: str) -> str | None:
    """The job that wrote what lies under an identifier; None if no job did."""
    if root in ("jobs", "runs"):
        return identifier if kind_of(identifier) is not None else None
    if root == "datasets" and is_id(identifier, "ds"):
        return sibling(identifier, "syn")
    if root == "models" and is_id(identifier, "mdl"):
        return sibling(identifier, "run")
    return None
