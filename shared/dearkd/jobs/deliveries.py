"""Deliveries of webhooks: what jobs are to tell, kept until it is told, and what came of each attempt.

`announce` in `lua/prelude.lua` adds one in the step that changes a job's status, so that none is lost or made twice.
Who sends it claims it for as long as an attempt may take: where that process dies, the next one sends it again, with
the same id.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, cast
from urllib.parse import urlsplit

from pydantic import BaseModel

from dearkd.choices import Status
from dearkd.errors import NotFound
from dearkd.identifiers import pattern_of
from dearkd.jobs.model import Delivery, DeliveryAttempt, DeliveryState, Job, now
from dearkd.jobs.records import parse
from dearkd.jobs.scripts import Transition
from dearkd.redis_client import Redis, job_key
from dearkd.specs.webhook import WebhookRequest

BACKOFF = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 28800)
"""Seconds between an attempt that failed and the next one: a day in all."""
KEPT_ATTEMPTS = 25


class _Record(BaseModel):
    """A delivery in Redis, as `announce` writes it and attempts complete it."""

    event: Status
    at: datetime
    job: dict[str, str]
    """Fields of the job's record when it entered that status, without its spec."""
    state: DeliveryState = "pending"
    attempts: list[DeliveryAttempt] = []
    tries: int = 0
    """Attempts that failed, since it was made or asked for again."""
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery that is for the caller to make."""

    id: str
    event: Status
    at: datetime
    job: Job
    """The job as it was when it entered the status."""
    url: str
    secret: str
    host: str
    number: int
    score: int
    record: _Record


class Deliveries:
    """The deliveries of all jobs. Raises `Unavailable` (`redis_unavailable`) when Redis cannot be reached."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._claim = Transition(redis, "claim_delivery")
        self._report = Transition(redis, "report_delivery")
        self._redeliver = Transition(redis, "redeliver")

    def page(self, job: str, *, after: str | None = None, limit: int = 50) -> tuple[list[Delivery], bool]:
        """Up to `limit` deliveries of a job, oldest first, later than `after`; and whether there are more."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(_records(job)))
        behind = 0 if after is None else number_of(after)
        numbers = sorted(number for number in map(int, found) if number > behind)
        shown = [_shown(job, number, _read(found[b"%d" % number])) for number in numbers[:limit]]
        return shown, len(numbers) > limit

    def redeliver(self, job: str, identifier: str) -> Delivery:
        """Let a delivery be made again at once, whatever came of it, with all its attempts before it.

        Raises:
            NotFound: if the job has no such delivery (any more).
        """
        number = _number(job, identifier)
        while True:
            old = cast("bytes | None", self.redis.hget(_records(job), str(number)))
            if old is None:
                raise NotFound(f"{job} has no delivery {identifier!r:.100}: the latest hundred are kept")
            record = _read(old).model_copy(update={"state": "pending", "tries": 0, "next_at": now()})
            if self._redeliver(id=job, number=number, old=old.decode(), record=record.model_dump_json()):
                return _shown(job, number, record)

    def claim(self, lease_seconds: float) -> ClaimedDelivery | None:
        """Take a delivery that is due; None if there is none.

        Args:
            lease_seconds: after which another may take it, unless it was reported on.
        """
        found = self._claim(lease=int(lease_seconds * 1000))
        if found is None:
            return None
        job, number, text, spec, webhook, score = found
        record, target = _read(text.encode()), json.loads(webhook)
        fields = {name.encode(): value.encode() for name, value in {**record.job, "spec": spec}.items()}
        return ClaimedDelivery(
            id=_identifier(job, int(number)),
            event=record.event,
            at=record.at,
            job=parse(job, fields),
            url=target["url"],
            secret=target["secret"],
            host=target["host"],
            number=int(number),
            score=score,
            record=record,
        )

    def report(
        self,
        claimed: ClaimedDelivery,
        attempt: DeliveryAttempt,
        *,
        state: DeliveryState,
        backoff: Sequence[float] = BACKOFF,
        pause: float | None = None,
    ) -> DeliveryState:
        """Tell how an attempt ended; returns how the delivery stands now. Of a claim that was lost nothing is kept.

        Args:
            claimed: the delivery.
            attempt: at it.
            state: `pending` where it is to be tried again, for as long as `backoff` goes on.
            backoff: seconds to wait after each attempt that failed.
            pause: seconds for which others to this host are to wait, since it took long.
        """
        before = claimed.record
        delay = backoff[before.tries] if state == "pending" and before.tries < len(backoff) else None
        state = "failed" if state == "pending" and delay is None else state
        record = before.model_copy(
            update={
                "state": state,
                "attempts": [*before.attempts, attempt][-KEPT_ATTEMPTS:],
                "tries": before.tries + 1,
                "next_at": None if delay is None else now() + timedelta(seconds=delay),
            }
        )
        self._report(
            id=claimed.job.id,
            number=claimed.number,
            score=claimed.score,
            record=record.model_dump_json(),
            delay=None if delay is None else int(delay * 1000),
            slow=None if pause is None else claimed.host,
            pause=None if pause is None else int(pause * 1000),
        )
        return state


def webhook_field(webhook: WebhookRequest) -> str:
    """A webhook as the record of its job keeps it, in Redis alone: JSON, with its secret."""
    host = str(urlsplit(webhook.url).hostname)
    return json.dumps({**webhook.model_dump(), "secret": webhook.secret, "host": host})


def _records(job: str) -> str:
    return f"{job_key(job)}:deliveries"


def _identifier(job: str, number: int) -> str:
    return f"msg_{job}_{number}"


def delivery_pattern(kind: Literal["syn", "run"]) -> str:
    """The regular expression of the ids of deliveries of one kind of job, for schemas."""
    return f"^msg_{pattern_of(kind)[1:-1]}_[1-9][0-9]{{0,8}}$"


def number_of(identifier: str) -> int:
    """The number of a delivery in its job. Raises `NotFound` if that is no id of a delivery."""
    if not any(re.fullmatch(delivery_pattern(kind), identifier) for kind in ("syn", "run")):
        raise NotFound(f"{identifier!r:.100} is no id of a delivery")
    return int(identifier.rpartition("_")[2])


def _number(job: str, identifier: str) -> int:
    """The number of a delivery of this job. Raises `NotFound` if that is no id of one."""
    if not identifier.startswith(f"msg_{job}_"):
        raise NotFound(f"{job} has no delivery {identifier!r:.100}")
    return number_of(identifier)


def _read(text: bytes) -> _Record:
    return _Record.model_validate_json(text)


def _shown(job: str, number: int, record: _Record) -> Delivery:
    return Delivery(
        id=_identifier(job, number),
        event=record.event,
        created_at=record.at,
        state=record.state,
        attempts=record.attempts,
        next_attempt_at=(record.next_at or record.at) if record.state == "pending" else None,
    )
