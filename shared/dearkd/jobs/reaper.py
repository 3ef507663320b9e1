"""The reaper takes back what dead workers held and wakes the queues. Any worker or API may run one; one acts."""

import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable

from dearkd.errors import Unavailable
from dearkd.jobs.inspections import Inspections
from dearkd.jobs.ledger import Ledger
from dearkd.settings import Settings

log = logging.getLogger(__name__)

LOCK = "dearkd:reaper"
LOCK_SECONDS = 10
EVERY_SECONDS = 2.0
"""Time between two rounds, in the mean: a quarter more or less, for idle workers wait in steps of a second, and rounds
in step with them would wake the same ones each time."""


class Reaper:
    """Call `step` often: it acts about every two seconds, and only while it holds the lock."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self.ledger = ledger
        self.settings = settings
        self.inspections = Inspections(ledger.redis, ledger.store.storage)
        self._name = f"{socket.gethostname()}:{os.getpid()}:{id(self)}"
        self._next = 0.0
        self._reached_since: float | None = None

    def step(self) -> None:
        """One round, if it is time; an outage is logged and waited out."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_SECONDS * random.uniform(0.75, 1.25)
        try:
            leads = self._leads()
            self._reached_since = self._reached_since or time.monotonic()
            # While Redis was away, nobody could prolong a lease: the living get the time to do so before the silent are
            # taken for dead. Whether it was, one that has just begun cannot know.
            silent_too = time.monotonic() - self._reached_since >= self.settings.lease_seconds
        except Unavailable as error:
            self._reached_since = None
            log.warning("%s", error)
            return
        if leads:
            self._act(lambda: self._reap(silent_too))
            self._act(self.inspections.sweep)

    def _act(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Unavailable as error:
            log.warning("%s", error)
            if error.code == "redis_unavailable":
                self._reached_since = None
        except Exception:  # a record that this version cannot read must not end the process that reaps all others
            log.exception("the reaper's round failed")

    def _reap(self, silent_too: bool) -> None:
        for claim, status in self.ledger.reap(max_deaths=self.settings.max_deaths, silent_too=silent_too):
            log.warning("%s unit %s: its worker is gone; the job is %s", claim.job, claim.unit, status)

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set; for a thread of the API."""
        while not stop.wait(EVERY_SECONDS / 10):
            self.step()

    def _leads(self) -> bool:
        redis = self.ledger.redis
        if redis.set(LOCK, self._name, nx=True, ex=LOCK_SECONDS):
            return True
        if redis.get(LOCK) == self._name.encode():
            redis.expire(LOCK, LOCK_SECONDS)
            return True
        return False
