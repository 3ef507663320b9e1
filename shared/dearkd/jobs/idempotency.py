"""Answers to requests that bear an `Idempotency-Key`: the first is kept for a day, and given to whoever asks again.

The id of what a request makes is settled before it is made. So also where the API is killed in between, who asks again
gets the one thing that was made, and not a second one.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict

from dearkd.errors import Conflict, InvalidInput
from dearkd.jobs.scripts import Transition
from dearkd.redis_client import Redis

KEEP_SECONDS = 86400


class Answer(BaseModel):
    """An answer as it was first given."""

    model_config = ConfigDict(frozen=True)

    status: int
    location: str | None
    body: str
    """JSON."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The outcome of asking for the first answer."""

    state: Literal["new", "again", "making", "made"]
    """`new`: it is for the caller to make. `again`: likewise, since who was to make it has ended without an answer.
    `making`: another does. `made`: it is there."""
    identifier: str
    """The id that what is made has, but for its kind."""
    answer: Answer | None = None


class Answers:
    """First answers, by owner and key. Raises `Unavailable` (`redis_unavailable`) when Redis cannot be reached."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._claim = Transition(redis, "claim_answer")

    def claim(self, owner: str | None, key: str, fingerprint: str, identifier: str, *, seconds: float) -> Turn:
        """Ask for the answer to a key, or for the right to make it.

        Args:
            owner: whose key it is: others' keys of the same name are others.
            key: the header's value.
            fingerprint: of the request, the same for the same request alone.
            identifier: that what is made will have, if it is for the caller to make.
            seconds: for how long nobody else makes it.

        Raises:
            InvalidInput: `idempotency_key_reused`, if the key was used for another request.
        """
        state, *details = self._claim(
            record=_record(owner, key),
            fingerprint=fingerprint,
            id=identifier,
            lease=int(seconds * 1000),
            keep=KEEP_SECONDS,
        )
        if state == "other":
            raise InvalidInput(
                f"the Idempotency-Key {key!r:.80} was used for another request in the last 24 hours: a new request "
                "needs a new key, such as a random UUID",
                code="idempotency_key_reused",
            )
        if state == "made":
            return Turn("made", identifier, Answer.model_validate_json(details[0]))
        return Turn(cast(Literal["new", "again", "making"], state), details[0] if state == "again" else identifier)

    def keep(self, owner: str | None, key: str, answer: Answer) -> None:
        """Keep the first answer."""
        self.redis.hset(_record(owner, key), "answer", answer.model_dump_json())

    def give_up(self, owner: str | None, key: str) -> None:
        """Let the next request make the answer, under the id that is settled, since this one has failed to."""
        if self.redis.exists(_record(owner, key)):
            self.redis.hset(_record(owner, key), "until", 0)

    def withdraw(self, owner: str | None, key: str) -> None:
        """Free a key whose request was refused: nothing was made, and it may be sent again."""
        self.redis.delete(_record(owner, key))


def still_making(key: str) -> Conflict:
    """The error that says that a request of this key has not been answered yet."""
    return Conflict(
        f"the first request with the Idempotency-Key {key!r:.80} is not answered yet: send this again later",
        code="idempotency_in_progress",
    )


def _record(owner: str | None, key: str) -> str:
    return f"dearkd:answer:{owner or ''}:{sha256(key.encode()).hexdigest()}"
