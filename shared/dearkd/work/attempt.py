"""One attempt at a unit of work: lease, heartbeat, cancel, progress. Whatever a task does, it does inside one.

The main thread computes and calls `check` at every step, which costs a flag's reading. A second thread prolongs the
lease, notices a cancel or a lost lease, and sends the latest progress to Redis, so that the optimisation
never waits for the network.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from types import TracebackType
from typing import Any, Self, TypeVar

from dearkd.errors import Canceled, DearKDError, DiskFull, LostLease, Unavailable
from dearkd.jobs.deaths import HUNG as HUNG
from dearkd.jobs.deaths import end_this_process
from dearkd.jobs.ledger import Claim, Ledger
from dearkd.jobs.measures import Measures
from dearkd.jobs.model import EventType, Job
from dearkd.jobs.records import add_event
from dearkd.settings import Settings
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
OUTAGE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
STOP_SECONDS = 15.0
"""The time in which a canceled or lost unit has to notice it, before its process is ended with all it started."""

SLOW_PASS_SECONDS = 10.0
"""One image of 224×224 pixels, the largest network, the slowest machine: our choice [R], far too long."""

T = TypeVar("T")


class HandBack(Exception):
    """The unit goes back without blame: the process was asked to end (a deploy), or the job was paused."""

    is_fault = False


class Died(Exception):
    """Processes that this one had started for the unit died: that counts as its own death would.

    The text is a clause for the job's log: "lost a process that it had started".
    """


class Attempt:
    """A claimed unit, kept alive while the block runs.

    Attributes:
        job: the record as it was when the unit was claimed.
        cache: local copies of what it reads, there until the attempt ends, and scratch folders.
        unit: the part of the job that this is, by its name in the spec's `units`.
        paused: True once the job was found paused: the unit then goes back.
    """

    def __init__(
        self, claim: Claim, job: Job, ledger: Ledger, settings: Settings, handing_back: threading.Event
    ) -> None:
        self.claim = claim
        self.cache = FileCache(settings.cache_dir, settings.cache_bytes)
        self.ledger = ledger
        self.settings = settings
        self.job = job
        self._handing_back = handing_back
        self._stop = threading.Event()
        self._interrupt: DearKDError | None = None
        self.paused = False
        self._latest: tuple[int, float | None, dict[str, Any]] | None = None
        # In this context, so that its lines of the log say of which attempt they are too.
        run = copy_context().run
        self._thread = threading.Thread(target=run, args=(self._keep_alive,), name=f"lease-{claim.unit}", daemon=True)
        self._interrupted_at: float | None = None
        self._checked = time.monotonic()
        self._patience = settings.stall_seconds + slow_step_seconds(job)

    @property
    def unit(self) -> str:
        return self.claim.unit

    @property
    def measures(self) -> Measures:
        """Sums of what this process measures, which go along with the next progress."""
        return self.ledger.measures

    @property
    def storage(self) -> Storage:
        return self.ledger.store.storage

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_reporting()
        self.cache.close()

    def check(self) -> None:
        """Raise if the work is to stop: `Canceled`, `LostLease` or `HandBack`. Cheap enough for every step."""
        self._checked = time.monotonic()
        if self._interrupt is not None:
            raise self._interrupt
        if self._handing_back.is_set():
            raise HandBack
        if self.paused:
            raise HandBack

    def confirm(self) -> None:
        """Ask Redis whether the claim still holds: before every publication. An outage of Redis is waited out."""
        while True:
            self.check()
            try:
                self._beat()
                break
            except Unavailable as error:
                log.warning("%s waits: %s", self.job.id, error)
                time.sleep(OUTAGE_SECONDS)
        self.check()

    def holds(self) -> bool:
        """Ask Redis once whether the claim still holds and the job runs: for what only serves people.

        Raises:
            Unavailable: if Redis cannot be reached.
        """
        self._beat()
        return self._interrupt is None and not self.paused

    def publish(self, action: Callable[[], T]) -> T:
        """Confirm the claim and act; through an outage of storage or Redis again and again, with growing pauses.

        What took hours to compute must not be lost because nobody could take it for a minute.

        Raises:
            DiskFull: at once, since waiting alone does not help.
        """
        pause = OUTAGE_SECONDS
        while True:
            self.confirm()
            try:
                return action()
            except DiskFull:
                raise
            except Unavailable as error:
                self.note(f"unit {self.unit} waits for storage: {error}")
            until = time.monotonic() + pause
            while time.monotonic() < until:
                self.check()
                time.sleep(0.1)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)

    def publish_last(self, action: Callable[[], T]) -> T:
        """Publish while the work is handed back: try once, since the process has seconds left.

        Raises:
            Unavailable: if Redis or storage cannot be reached.
        """
        self._beat()
        if self._interrupt is not None:
            raise self._interrupt
        return action()

    def progress(self, done: int, per_second: float | None, metrics: dict[str, Any]) -> None:
        """Leave the latest progress of this unit for the other thread to send."""
        self._latest = (done, per_second, metrics)

    def note(self, message: str) -> None:
        """A line for the job's log. A Redis that cannot be reached costs the line, not the job."""
        log.info("%s %s: %s", self.job.id, self.unit, message)
        try:
            self.ledger.log.add(self.job.id, message)
        except Unavailable as error:
            log.warning("could not log: %s", error)

    def wait_for(self, what: str | None) -> None:
        """Say what the job waits for while it runs, as a clause; None: nothing more. An outage of Redis is logged."""
        try:
            self.ledger.wait_for(self.claim, what)
        except Unavailable as error:
            log.warning("could not say what %s waits for: %s", self.job.id, error)

    def announce(self, kind: EventType, data: dict[str, Any]) -> None:
        """Append an event to those of the job. A Redis that cannot be reached costs the event, not the job."""
        try:
            add_event(self.ledger.redis, self.job.id, kind, data)
        except Unavailable as error:
            log.warning("could not announce: %s", error)

    def stop_reporting(self) -> None:
        """End the second thread, with a last report; before a unit is marked, so that no late one counts it twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        try:
            status = self.ledger.beat(self.claim, self.settings.lease_seconds)
        except LostLease as error:
            self._interrupt = error
            return
        if status == "canceling":
            self._interrupt = Canceled(f"{self.job.id} was canceled")
        elif status == "paused":
            self.paused = True
        elif status != "running":
            self._interrupt = LostLease(f"{self.job.id} is {status}: nothing more to do here")

    def _keep_alive(self) -> None:
        next_beat = time.monotonic()
        going = True
        while going:
            going = not self._stop.wait(min(REPORT_SECONDS, self.settings.heartbeat_seconds))
            try:
                if going and time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + self.settings.heartbeat_seconds
                    self._beat()
                if going and self._interrupt is not None:
                    self._insist(self._interrupt)
                if going and time.monotonic() - self._checked > self._patience:
                    self.note(f"unit {self.unit} made no step for {self._patience:.0f} s: it hangs, and is ended")
                    end_this_process(HUNG)
                latest, self._latest = self._latest, None
                if latest is not None and self._interrupt is None:
                    done, per_second, metrics = latest
                    self.ledger.report(self.claim, done=done, per_second=per_second, metrics=metrics)
                if not going and self.ledger.measures:
                    self.ledger.tell_measures()
            except Unavailable as error:
                # Work goes on through an outage; the fence decides at the next publication whether it counts.
                log.warning("%s: %s", self.job.id, error)

    def _insist(self, why: DearKDError) -> None:
        """Wait a while for the main thread to notice; then end this process and every other that it started."""
        if self._interrupted_at is None:
            self._interrupted_at = time.monotonic()
        if time.monotonic() - self._interrupted_at < STOP_SECONDS:
            return
        self.note(f"unit {self.unit} did not stop within {STOP_SECONDS:.0f} s, and is killed: {why.message}")
        end_this_process()


def slow_step_seconds(job: Job) -> float:
    """The time that a step of a job may take on the slowest machine, by the size of its batch and of its images."""
    sizes = (
        [phase["input_size"] for phase in job.spec["phases"]]
        if job.kind == "synthesis"
        else [job.spec["student"]["image_size"]]
    )
    return SLOW_PASS_SECONDS * float(job.spec["batch_size"]) * (float(max(sizes)) / 224) ** 2
