"""The use of API keys' quotas: requests of a minute, images and bytes of a day (UTC)."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import cast

from dearkd.errors import LimitReached, Unavailable
from dearkd.jobs.scripts import Transition
from dearkd.redis_client import Redis, milliseconds
from dearkd.specs.requests import Quotas

KEEP_SECONDS = 2 * 86400


class KeyQuotas:
    """The use of all keys' quotas. If Redis is lost, the day begins anew."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._take_request = Transition(redis, "take_request")
        self._charge = Transition(redis, "charge")

    def take_request(self, owner: str, per_minute: int) -> int | None:
        """Count a request; the seconds to wait if it is one too many in this minute, else None.

        While Redis cannot be reached nothing is counted: what the request needs of it fails by itself.
        """
        try:
            count, left = self._take_request(owner=owner)
        except Unavailable:
            return None
        return int(left) if count > per_minute else None

    @contextmanager
    def charged(self, owner: str | None, quotas: Quotas | None, *, images: int = 0, size: int = 0) -> Iterator[None]:
        """Count images and bytes for as long as nothing fails within: what was refused is given back.

        Args:
            owner: the key; None: nothing is counted.
            quotas: of the key.
            images, size: to be made or stored; `size` in bytes.

        Raises:
            LimitReached: `quota_exceeded`.
            Unavailable: if Redis cannot be reached.
        """
        if owner is None or quotas is None:
            yield
            return
        at = self._now()
        record = _record(owner, at)
        answer = self._charge(
            record=record,
            images=images,
            bytes=size,
            max_images=quotas.images_per_day,
            max_bytes=quotas.bytes_per_day,
            keep=KEEP_SECONDS,
        )
        if answer != "charged":
            raise _exceeded(quotas, {"images": images, "bytes": size}, *answer, at=at)
        try:
            yield
        except BaseException:
            pipe = self.redis.pipeline(transaction=True)
            pipe.hincrby(record, "images", -images)
            pipe.hincrby(record, "bytes", -size)
            with suppress(Unavailable):  # what failed before is what there is to tell
                pipe.execute()
            raise

    def used(self, owner: str) -> dict[str, int]:
        """The images and bytes that a key has used today."""
        found = cast("list[bytes | None]", self.redis.hmget(_record(owner, self._now()), ["images", "bytes"]))
        return {name: int(value or 0) for name, value in zip(("images", "bytes"), found, strict=True)}

    def _now(self) -> datetime:
        """The time by Redis' clock: two APIs whose clocks differ count in the same day."""
        return datetime.fromtimestamp(milliseconds(self.redis) / 1000, UTC)


def _record(owner: str, at: datetime) -> str:
    return f"dearkd:quota:{owner}:{at:%Y-%m-%d}"


def _exceeded(quotas: Quotas, wanted: dict[str, int], what: str, used: int, *, at: datetime) -> LimitReached:
    most = quotas.images_per_day if what == "images" else quotas.bytes_per_day
    error = LimitReached(
        f"this key may use {most} {what} a day and has used {used}; this would take {wanted[what]} more: wait for the "
        "next day (UTC), ask for less, or ask for a higher quota",
        code="quota_exceeded",
    )
    tomorrow = (at + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    error.retry_after = max(1, round((tomorrow - at).total_seconds()))
    return error
