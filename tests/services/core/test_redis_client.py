"""The client of Redis says in dearkd's words what goes wrong, whichever way a command is sent, and in rq's too."""

from collections.abc import Callable

import pytest
import redis.exceptions
from rq import Queue

from dearkd.errors import Unavailable
from dearkd.jobs.queue import queue, wake
from dearkd.local.embedded_redis import free_port
from dearkd.redis_client import Redis, connect
from dearkd.settings import Settings

SCRIPT = "return redis.call('GET', 'x')"


def by_pipeline(client: Redis) -> object:
    pipe = client.pipeline(transaction=True)
    pipe.get("x")
    return pipe.execute()


def by_script_in_pipeline(client: Redis) -> object:
    pipe = client.pipeline(transaction=True)
    client.register_script(SCRIPT)(client=pipe)
    return pipe.execute()


def by_watch(client: Redis) -> object:
    with client.pipeline() as pipe:
        return pipe.watch("x")


WAYS: dict[str, Callable[[Redis], object]] = {
    "command": lambda client: client.get("x"),
    "blocking command": lambda client: client.blpop(["x"], timeout=1),
    "script": lambda client: client.register_script(SCRIPT)(),
    "pipeline": by_pipeline,
    "script in a pipeline": by_script_in_pipeline,
    "watch": by_watch,
    "enqueueing by rq": lambda client: wake(client, "synth", "x"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_redis_that_cannot_be_reached_is_unavailable_and_a_lost_connection_to_rq(
    way: Callable[[Redis], object],
) -> None:
    client = connect(Settings(redis_url=f"redis://:secret@127.0.0.1:{free_port()}"))
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        way(client)
    assert (caught.value.code, caught.value.retryable) == ("redis_unavailable", True)
    assert isinstance(caught.value, redis.exceptions.ConnectionError)
    assert "127.0.0.1" in caught.value.cause
    assert "secret" not in str(caught.value) + caught.value.cause


@pytest.mark.parametrize("way", [WAYS["command"], by_pipeline, WAYS["script"], by_script_in_pipeline])
def test_a_refused_command_is_unavailable_and_an_answer_to_rq(
    settings: Settings, way: Callable[[Redis], object]
) -> None:
    client = connect(settings)
    client.flushall()
    client.lpush("x", "a list cannot be got")
    with pytest.raises(Unavailable, match="refused a command") as caught:
        way(client)
    assert caught.value.code == "redis_unavailable"
    assert isinstance(caught.value, redis.exceptions.ResponseError)
    assert "WRONGTYPE" in caught.value.cause


def test_a_script_that_redis_forgot_behind_a_pipelines_back_is_unavailable(settings: Settings) -> None:
    """Redis began anew after the pipeline had loaded it: the same request succeeds when it comes again."""
    client = connect(settings)
    pipe = client.pipeline(transaction=True)
    pipe.evalsha("0" * 40, 0)
    with pytest.raises(Unavailable, match="refused a command"):
        pipe.execute()


def test_what_scripts_and_rq_steer_by_comes_through(settings: Settings) -> None:
    client = connect(settings)
    client.flushall()
    client.script_flush()
    assert client.register_script("return 7")() == 7, "it is loaded when Redis does not know it"
    with client.pipeline() as pipe:
        pipe.watch("y")
        client.set("y", 1)
        pipe.multi()
        pipe.set("y", 2)
        with pytest.raises(redis.exceptions.WatchError):
            pipe.execute()
    wake(client, "synth", "x")
    found: Queue = queue(client, "synth")
    assert found.count == 1
