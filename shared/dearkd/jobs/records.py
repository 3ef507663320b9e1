"""Job records in Redis, to be read; what changes them is in `store` and `ledger`."""

import json
import logging
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from typing import Any, cast

from dearkd.choices import Kind, Status
from dearkd.documents import FIELD, Unread, require_known
from dearkd.errors import Conflict, NotFound, Unreadable, reason
from dearkd.jobs.model import ACTIVE, STATUSES, Event, EventType, Job, as_now, kind_of, now
from dearkd.redis_client import Pipeline, Redis, job_index, job_key

log = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = ("synthesis", "training")
LOOKED_AT = 200
"""Records that are read at once where not all of them are wanted."""
EVENTS = "dearkd:events"
"""Stream: the latest events of all jobs."""


class JobRecords:
    """Records of jobs, to be read.

    Every method raises `Unavailable` (`redis_unavailable`) when Redis cannot be reached, and those that name a job
    `NotFound` when there is none of that id, and `Unreadable` when its record is one that this version cannot read.
    """

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def get(self, identifier: str, *, owner: str | None = None) -> Job:
        """The job; one that `owner` may not see is as one that does not exist."""
        found = self.redis.hgetall(job_key(identifier)) if kind_of(identifier) else {}
        values = cast("dict[bytes, bytes]", found)
        if not values or (owner is not None and values.get(b"owner", b"") not in (b"", owner.encode())):
            raise NotFound(f"there is no job {identifier!r}")
        return parse(identifier, values)

    def page(
        self,
        kind: Kind,
        *,
        status: Status | None = None,
        limit: int = 50,
        after: str | None = None,
        owner: str | None = None,
        labels: Collection[tuple[str, ...]] = (),
        since: str | None = None,
        unread: list[Unread] | None = None,
    ) -> tuple[list[Job], bool]:
        """Up to `limit` jobs, newest first, older than `after`; and whether there are more.

        With `owner` its own jobs alone: those without an owner are in the listing without one.

        Args:
            kind, status, owner: of the jobs.
            limit: the most jobs.
            after, since: ids, or what sorts among them, between which theirs lie.
            labels: keys and values that they have, all of them; then jobs are looked through until so many are found.
            unread: as for `search`.
        """
        wanted = set(labels)

        def labelled(job: Job) -> bool:
            return wanted <= job.labels.items()

        where = labelled if wanted else None
        jobs, last = self.search(
            kind,
            status=status,
            limit=limit,
            after=after,
            owner=owner,
            since=since,
            where=where,
            most=None,
            unread=unread,
        )
        return jobs, last is not None

    def search(
        self,
        kind: Kind,
        *,
        status: Status | None = None,
        limit: int = 50,
        after: str | None = None,
        owner: str | None = None,
        since: str | None = None,
        where: Callable[[Job], bool] | None = None,
        most: int | None = 2000,
        unread: list[Unread] | None = None,
    ) -> tuple[list[Job], str | None]:
        """Up to `limit` jobs as `page` has them, and the id to go on behind; None if there are no more.

        Args:
            kind, status, limit, after, owner, since: as for `page`.
            where: tells which are wanted; None: all.
            most: the jobs that are looked through at most, or until the list is full; None: all.
            unread: gets those whose records this version cannot read; they are on no list, and hide no other.
        """
        index, bottom = job_index(kind, status, owner), f"[{since}" if since else "-"
        jobs: list[Job] = []
        seen = 0
        at_once = limit + 1 if where is None else max(limit + 1, LOOKED_AT)
        while True:
            top = f"({after}" if after else "+"
            found = cast("list[bytes]", self.redis.zrevrangebylex(index, top, bottom, 0, at_once))
            pipe = self.redis.pipeline(transaction=False)
            for identifier in found:
                pipe.hgetall(job_key(identifier.decode()))
            records = []
            for identifier, values in zip(found, pipe.execute() if found else [], strict=True):
                try:
                    records += [parse(identifier.decode(), values)] if values else []
                except Unreadable as error:
                    log.warning("left out of the list: %s", error)
                    if unread is not None:
                        unread.append(Unread(id=identifier.decode(), reason=error.message))
            jobs += records if where is None else filter(where, records)
            if len(jobs) > limit:
                return jobs[:limit], jobs[limit - 1].id
            if len(found) < at_once:
                return jobs, None
            after = found[-1].decode()
            seen += len(found)
            if most is not None and seen >= most:
                return jobs, after

    def counts(self, *, owner: str | None = None) -> dict[Status, int]:
        """The number of jobs of each status, of both kinds; with `owner` of its own."""
        pipe = self.redis.pipeline(transaction=False)
        for status in STATUSES:
            for kind in KINDS:
                pipe.zcard(job_index(kind, status, owner))
        found = cast("list[int]", pipe.execute())
        return {status: sum(found[len(KINDS) * i : len(KINDS) * (i + 1)]) for i, status in enumerate(STATUSES)}

    def active(self, kind: Kind) -> Iterator[Job]:
        """All jobs that have not ended. Raises `Conflict` if there is one of which this version can tell nothing."""
        unread: list[Unread] = []
        for status in sorted(ACTIVE):
            after = None
            while True:
                jobs, more = self.page(kind, status=status, limit=200, after=after, unread=unread)
                if unread:
                    raise Conflict(f"what {unread[0].id} uses cannot be told: {unread[0].reason}", code="in_use")
                yield from jobs
                if not more:
                    break
                after = jobs[-1].id

    def events(self, identifier: str, *, after: str | None = None, limit: int = 50) -> tuple[list[Event], bool]:
        """Up to `limit` events, oldest first, later than `after`; and whether there are more."""
        self.get(identifier)
        rows = self._entries(f"{job_key(identifier)}:events", after, limit + 1)
        return [_event(row, values) for row, values in rows[:limit]], len(rows) > limit

    def events_of_all(
        self, *, owner: str | None = None, after: str | None = None, limit: int = 50
    ) -> tuple[list[Event], bool, str | None]:
        """Events of all jobs that `owner` may see, oldest first; whether there may be more; and where to go on.

        Each names its `job`. Of jobs that Redis has lost there is none.

        Args:
            owner: the key that asks; None sees all.
            after: the id to go on behind.
            limit: the most that are looked at.
        """
        rows = self._entries(EVENTS, after, limit + 1)
        found = [_event(row, values) for row, values in rows[:limit]]
        jobs = sorted({str(event.job) for event in found})
        pipe = self.redis.pipeline(transaction=False)
        for job in jobs:
            pipe.hget(job_key(job), "owner")
        owners = dict(zip(jobs, pipe.execute() if jobs else [], strict=True))
        seen = {job for job, whose in owners.items() if whose is not None and owner in (None, whose.decode() or owner)}
        return [event for event in found if event.job in seen], len(rows) > limit, found[-1].id if found else after

    def last_event(self) -> str:
        """The id of the latest event of all jobs."""
        rows = cast("list[tuple[bytes, Any]]", self.redis.xrevrange(EVENTS, count=1))
        return rows[0][0].decode() if rows else "0-0"

    def _entries(self, stream: str, after: str | None, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found = self.redis.xrange(stream, f"({after}" if after else "-", "+", count)
        return cast("list[tuple[bytes, dict[bytes, bytes]]]", found)

    def rows(self, identifier: str, *, after: int = 0, limit: int = 50) -> tuple[list[dict[str, Any]], bool]:
        """Up to `limit` rows of a run's metrics after row `after` (they count from 1); and whether there are more."""
        found = cast("list[bytes]", self.redis.lrange(f"{job_key(identifier)}:rows", after, after + limit))
        numbered = enumerate(found[:limit], after + 1)
        return [{"id": str(i), **json.loads(row)} for i, row in numbered], len(found) > limit


def _event(row: bytes, values: dict[bytes, bytes]) -> Event:
    job = values.get(b"job")
    return Event(
        id=row.decode(),
        at=datetime.fromisoformat(values[b"at"].decode()),
        type=cast(EventType, values[b"type"].decode()),
        data=json.loads(values[b"data"]),
        job=None if job is None else job.decode(),
    )


def add_event(client: "Redis | Pipeline", identifier: str, kind: EventType, data: dict[str, Any]) -> None:
    """Append an event to the job's own stream and to that of all jobs; `lua/prelude.lua` does the same."""
    fields: dict[Any, Any] = {"type": kind, "at": at(), "data": json.dumps(data)}
    client.xadd(f"{job_key(identifier)}:events", fields, maxlen=2000, approximate=True)
    client.xadd(EVENTS, fields | {"job": identifier}, maxlen=10_000, approximate=True)


def at() -> str:
    return now().isoformat()


def parse(identifier: str, values: dict[bytes, bytes]) -> Job:
    """The job of a record, of whatever schema this version reads.

    Raises:
        NewerSchema: if a newer version wrote it.
        Unreadable: if it is damaged.
    """
    try:
        schema = int(values.get(FIELD.encode(), b"1"))
        require_known(schema, Job.newest, f"the record of {identifier}")
        return as_now(_job(values))
    except (ValueError, RecursionError) as error:
        problem = error if isinstance(error, ValueError) else ValueError(reason(error))
        remedy = f"delete dearkd:job:{identifier} from Redis, and `dearkd retry {identifier}` writes it from storage"
        raise Unreadable(f"the record of {identifier} in Redis", remedy, problem) from None


def _job(values: dict[bytes, bytes]) -> Job:
    texts: dict[str, Any] = {name.decode(): value.decode() for name, value in values.items()}
    for name in ("spec", "progress", "metrics", "result", "error"):
        if name in texts:
            texts[name] = json.loads(texts[name])
    texts = {name: value for name, value in texts.items() if (name, value) != ("owner", "")}
    return Job.model_validate({name: value for name, value in texts.items() if name in Job.model_fields})
