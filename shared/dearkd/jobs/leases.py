"""Claims on units of work: who has one, and whose are over. Redis alone: a process that forks may do this."""

import os
from dataclasses import dataclass
from typing import cast

from dearkd.choices import Kind
from dearkd.errors import Unreadable
from dearkd.jobs.deaths import holder
from dearkd.jobs.model import UNREADABLE, Job, units_of
from dearkd.jobs.offers import Offer
from dearkd.jobs.records import at, parse
from dearkd.jobs.scripts import Transition
from dearkd.redis_client import Redis, job_key

BLAMED_SECONDS = 5.0
"""The lease of a unit that is claimed only to say who died before claiming it; it is over at once."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A unit of a job, ours until the lease runs out; `token` fences every publication."""

    job: str
    unit: str
    token: str


class Leases:
    """Raises `Unavailable` (`redis_unavailable`) when Redis cannot be reached."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.offer: Offer | None = None
        """The device and memory of the worker that claims; without it jobs that need something are left alone."""
        self._claim = Transition(redis, "claim")
        self._plan = Transition(redis, "plan")
        self._expire = Transition(redis, "expire")

    def claim(self, kind: Kind, lease_seconds: float, *, who: str | None = None) -> Claim | None:
        """The best open unit of that kind, by priority and turn; None if there is nothing to do.

        Jobs of a newer schema are left alone: they say what they wait for. So are those that need what this worker
        does not have.
        """
        who = who or holder(os.getppid(), os.getpid())
        while found := self._claim(
            kind=kind,
            schema=Job.newest,
            at=at(),
            lease=int(lease_seconds * 1000),
            holder=who,
            offer=self.offer and self.offer.model_dump(),
        ):
            if len(found) == 3:
                return Claim(*found)
            self._record_units(*found)
        return None

    def _record_units(self, identifier: str) -> None:
        """Give a job that an earlier version accepted the units of its spec, as jobs have them from the beginning."""
        try:
            groups = units_of(parse(identifier, cast("dict[bytes, bytes]", self.redis.hgetall(job_key(identifier)))))
        except Unreadable:
            groups = UNREADABLE
        self._plan(id=identifier, at=at(), groups=groups)

    def expire(self, name: str, cause: str) -> int:
        """End the leases of a process that has ended, and of those below it: others have them at the next reaping.

        Args:
            name: `holder` of it; of an rq worker it covers the horses below.
            cause: how it ended, as a clause: "was killed by SIGKILL".

        Returns:
            How many units it held.
        """
        return int(self._expire(holder=name, cause=cause))

    def blame(self, kind: Kind, name: str, cause: str) -> None:
        """A process that was to work on that kind ended without claiming anything: a death of the unit that is next.

        Without it a worker that cannot even start its task would be woken for ever.

        Args:
            kind: the kind of job that it was woken for.
            name: its `holder` name.
            cause: how it ended, as a clause ("was killed by SIGKILL").
        """
        if self.expire(name, cause) == 0 and self.claim(kind, BLAMED_SECONDS, who=name) is not None:
            self.expire(name, cause)
