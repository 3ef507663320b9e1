"""Claims on units of work: who has one, and whose are over. Redis alone: a process that forks may do this."""

import os
import time
from dataclasses import dataclass
from typing import cast

from redis import Redis

from dearkd.jobs import scripts
from dearkd.jobs.deaths import holder
from dearkd.jobs.model import Kind
from dearkd.jobs.records import at
from dearkd.redis_client import reachable

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
        self._claim = redis.register_script(scripts.CLAIM)
        self._bury = redis.register_script(scripts.BURY)

    def claim(self, kind: Kind, lease_seconds: float, *, who: str | None = None) -> Claim | None:
        """The best open unit of that kind, by priority and turn; None if there is nothing to do."""
        with reachable():
            who = who or holder(os.getppid(), os.getpid())
            args: list[str | int] = [kind, at(), milliseconds(), int(lease_seconds * 1000), who]
            found = self._claim(args=args)
        return Claim(*(part.decode() for part in cast("list[bytes]", found))) if found else None

    def bury(self, name: str, cause: str) -> int:
        """A process has ended, with those below it: what it held is open to others at the next reaping.

        Args:
            name: `holder` of it; of an rq worker it covers the horses below.
            cause: how it ended, as a clause: "was killed by SIGKILL".

        Returns:
            How many units it held.
        """
        with reachable():
            return int(cast(int, self._bury(args=[name, cause])))

    def blame(self, kind: Kind, name: str, cause: str) -> None:
        """A process that was to work on that kind ended without claiming anything: a death of the unit that is next.

        Without it a worker that cannot even start its task would be woken for ever.

        Args:
            kind: of the jobs that it was woken for.
            name: `holder` of it.
            cause: how it ended, as a clause.
        """
        if self.bury(name, cause) == 0 and self.claim(kind, BLAMED_SECONDS, who=name) is not None:
            self.bury(name, cause)


def milliseconds() -> int:
    """Of the time now."""
    return time.time_ns() // 1_000_000
