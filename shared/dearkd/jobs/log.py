"""A job's log: what its attempts noted and why they ended, line by line.

It is kept in Redis while the job is known there, and stored as `jobs/{id}/log.txt` at the end of every attempt, so that
it outlives Redis.
"""

from typing import cast

from dearkd.errors import NotFound
from dearkd.jobs.records import add_event, at
from dearkd.redaction import public
from dearkd.redis_client import Redis, job_key
from dearkd.storage.objects import Storage

LINES = 5000
"""The most log lines kept for one job; older ones are dropped."""


class JobLog:
    """The logs of all jobs. Every method raises `Unavailable` when Redis or storage cannot be reached."""

    def __init__(self, redis: Redis, storage: Storage) -> None:
        self.redis = redis
        self.storage = storage

    def add(self, identifier: str, message: str) -> None:
        """A line, or several; an event of the job says the same. Paths of this machine and passwords are left out."""
        message = public(message)
        pipe = self.redis.pipeline(transaction=True)
        add_event(pipe, identifier, "log", {"message": message})
        pipe.rpush(_key(identifier), f"{at()} {message}")
        pipe.ltrim(_key(identifier), -LINES, -1)
        pipe.execute()

    def keep(self, identifier: str) -> None:
        """Store what there is. Of two at once the earlier may win; the end of the job writes it again."""
        text = self._live(identifier)
        if text:
            self.storage.put(_stored_key(identifier), text.encode())

    def read(self, identifier: str) -> str:
        """The log so far; empty where nothing was noted."""
        if live := self._live(identifier):
            return live
        try:
            return self.storage.read(_stored_key(identifier)).decode(errors="replace")
        except NotFound:
            return ""

    def end(self, identifier: str, lines: int) -> str:
        """The last lines, as far as Redis has them."""
        found = cast("list[bytes]", self.redis.lrange(_key(identifier), -lines, -1))
        return "\n".join(line.decode() for line in found)

    def _live(self, identifier: str) -> str:
        lines = cast("list[bytes]", self.redis.lrange(_key(identifier), 0, -1))
        return "".join(line.decode() + "\n" for line in lines)


def _key(identifier: str) -> str:
    return f"{job_key(identifier)}:log"


def _stored_key(identifier: str) -> str:
    return f"jobs/{identifier}/log.txt"
