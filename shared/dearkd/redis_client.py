"""The client of Redis: how it connects, what it raises, and the keys that more than one room knows."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from dearkd.errors import Unavailable
from dearkd.redaction import without_credentials
from dearkd.settings import Settings

log = logging.getLogger(__name__)


def connect(settings: Settings) -> Redis:
    """A client of the configured Redis; nothing is sent yet.

    A call that finds no Redis fails within seconds, so that a request can answer 503 at once.
    """
    return Redis.from_url(
        settings.redis_url,
        socket_connect_timeout=2,
        socket_timeout=15,
        health_check_interval=30,
        decode_responses=False,
    )


@contextmanager
def reachable() -> Iterator[None]:
    """Turn what the Redis client raises into `Unavailable` (`redis_unavailable`)."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise _unavailable("Redis cannot be reached; check DEARKD_REDIS_URL and that it runs", error) from error
    except RedisError as error:
        raise _unavailable("Redis refused a command; see the log for what it says", error) from error


def _unavailable(message: str, error: RedisError) -> Unavailable:
    cause = without_credentials(str(error))
    log.info("%s: %s", message, cause)
    return Unavailable(message, code="redis_unavailable", cause=cause)


def job_key(identifier: str) -> str:
    return f"dearkd:job:{identifier}"


def job_index(kind: str, status: str | None = None, owner: str | None = None) -> str:
    """The sorted set of jobs of that kind, of a status and of an owner where they are given."""
    return f"dearkd:jobs:{kind}" + (f":{status}" if status else "") + (f"@{owner}" if owner else "")
