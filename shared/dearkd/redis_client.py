"""The client of Redis: how it connects, what it raises, and the keys that more than one room knows."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import redis
from redis.client import Pipeline as RedisPipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

from dearkd.errors import Unavailable
from dearkd.latency import Observer, timed
from dearkd.redaction import without_credentials
from dearkd.settings import Settings

log = logging.getLogger(__name__)


class RedisUnavailable(Unavailable, RedisConnectionError):
    """Redis cannot be reached. rq, which shares the client, takes it for the lost connection that it is."""


class RedisRefused(Unavailable, ResponseError):
    """Redis answered a command with an error: it has no memory left, or loads, or is read-only."""


@contextmanager
def _translated() -> Iterator[None]:
    """Raise `Unavailable` in place of redis-py's errors, but for the two by which it and rq steer."""
    try:
        yield
    except (Unavailable, NoScriptError, WatchError):
        raise
    except (RedisConnectionError, RedisTimeoutError) as error:
        message = "Redis cannot be reached; check DEARKD_REDIS_URL and that it runs"
        raise _logged(RedisUnavailable, message, error) from error
    except RedisError as error:
        raise _logged(RedisRefused, "Redis refused a command; see the log for what it says", error) from error


def _logged(kind: type[Unavailable], message: str, error: RedisError) -> Unavailable:
    cause = without_credentials(str(error))
    log.info("%s: %s", message, cause)
    return kind(message, code="redis_unavailable", cause=cause)


class Pipeline(RedisPipeline):
    """Commands that are sent together; raises as `Redis` does."""

    observer: Observer | None = None

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        with timed(self.observer, "pipeline"), _translated():
            try:
                return super().execute(raise_on_error)
            except NoScriptError as error:  # it was loaded just before: Redis has begun anew since
                raise ResponseError(*error.args) from error

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        with _translated():
            return super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]


class Redis(redis.Redis):
    """redis-py's client, of which every command raises `Unavailable` (`redis_unavailable`) when it cannot be done.

    What it raises is redis-py's error too (`RedisUnavailable`, `RedisRefused`), for rq, which works with this client
    and waits out a connection that is lost. Scripts and blocking commands are commands; PubSub, which nothing here
    uses, is as redis-py has it.
    """

    observer: Observer | None = None
    """Hears of each command by its name, of a pipeline as one."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with timed(self.observer, str(args[0]).lower()), _translated():
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        pipeline = Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.observer = self.observer
        return pipeline


def connect(settings: Settings, *, answer_seconds: float = 15, observer: Observer | None = None) -> Redis:
    """A client of the configured Redis; nothing is sent yet.

    A call that finds no Redis fails within seconds, so that a request can answer 503 at once.

    Args:
        settings: of this process.
        answer_seconds: for which a call waits for its answer, where there is a Redis that does not give one.
        observer: hears of each command.
    """
    client = Redis.from_url(
        settings.redis_url,
        socket_connect_timeout=2,
        socket_timeout=answer_seconds,
        health_check_interval=30,
        decode_responses=False,
    )
    connected = cast(Redis, client)
    connected.observer = observer
    return connected


def milliseconds(client: Redis) -> int:
    """The time since the epoch by Redis' clock. Hosts tell each other times of it: their own may be wrong."""
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


def job_key(identifier: str) -> str:
    return f"dearkd:job:{identifier}"


def job_index(kind: str, status: str | None = None, owner: str | None = None) -> str:
    """The sorted set of jobs of that kind, of a status and of an owner where they are given."""
    return f"dearkd:jobs:{kind}" + (f":{status}" if status else "") + (f"@{owner}" if owner else "")
