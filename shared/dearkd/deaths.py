"""Deaths that an rq worker saw, told to those that may act on them.

An rq worker forks. Whatever starts threads there (the runtime of object storage does, at its first request) leaves the
next work-horse with locks that nobody will ever open. So it holds a Redis client and nothing else, and only tells how
a work-horse ended; the reaper, in a process that never forks, does what follows.
"""

import logging
from typing import cast

from pydantic import BaseModel, ConfigDict, ValidationError
from redis import Redis

from dearkd.errors import Unavailable
from dearkd.ledger import Ledger
from dearkd.queue import QUEUES, QueueName
from dearkd.records import reachable
from dearkd.registration import Registrations

log = logging.getLogger(__name__)

KEY = "dearkd:deaths"
KEPT = 1000
"""More than that nobody has read for long: then leases and beats have run out, which says the same."""


class Death(BaseModel):
    """The end of a work-horse that came before the end of its task."""

    model_config = ConfigDict(frozen=True)

    queue: QueueName
    task: str
    """The argument of its task: the job that woke it, or the ticket that it inspected."""
    holder: str
    """See `dearkd.ledger.holder`."""
    cause: str
    """As a clause: "was killed by SIGKILL"."""


def tell(redis: Redis, death: Death) -> None:
    """Leave word of a death. Raises `Unavailable` (`redis_unavailable`) when Redis cannot be reached."""
    with reachable():
        pipe = redis.pipeline(transaction=True)
        pipe.multi()  # rq's own commands on this client may have left it watching
        pipe.rpush(KEY, death.model_dump_json())
        pipe.ltrim(KEY, -KEPT, -1)
        pipe.execute()


def act(ledger: Ledger) -> list[Death]:
    """Do what follows from the deaths that were told: units are free again, a registration is refused.

    Not for a process that forks. What storage does not allow now is left for the next time.

    Returns:
        Those deaths that were acted on.

    Raises:
        Unavailable: when Redis cannot be reached.
    """
    with reachable():
        told = cast("list[bytes]", ledger.redis.lrange(KEY, 0, -1))
    done: list[Death] = []
    for text in told:
        try:
            death = Death.model_validate_json(text)
            _act_on(death, ledger)
            done.append(death)
        except ValidationError as error:  # of another version: its leases run out, and it must not hold up the others
            log.warning("a death is told in words that this version does not know: %s", error)
        except Unavailable as error:
            if error.code == "redis_unavailable":
                raise
            log.warning("%s", error)
            continue
        # Behind the deed: a death that is acted on twice finds nothing held, one that is forgotten costs a lease.
        with reachable():
            ledger.redis.lrem(KEY, 1, text.decode())
    return done


def _act_on(death: Death, ledger: Ledger) -> None:
    if death.queue == "inspect":
        registrations = Registrations(ledger.redis, ledger.store.storage)
        registrations.abandon(death.task, f"the inspector {death.cause}")
    else:
        kind = next(kind for kind, queue in QUEUES.items() if queue == death.queue)
        ledger.blame(kind, death.holder, death.cause)
