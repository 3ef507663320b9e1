"""rq wiring. Tasks are wake-ups: what is to be done stands in the job records, never in a task.

The rules come from measurements on rq 3.0 (DESIGN.md): the JSON serializer on both sides, a job id as a task's only
argument, one queue a worker, an explicit timeout, and no use of rq's results, dependencies or statuses.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal

from rq import Queue, Worker
from rq.serializers import JSONSerializer

from dearkd.choices import Kind
from dearkd.errors import Unavailable
from dearkd.redis_client import Pipeline, Redis

QueueName = Literal["synth", "train", "inspect"]

QUEUES: dict[Kind, QueueName] = {"synthesis": "synth", "training": "train"}

# Functions go by name, so that who enqueues imports neither torch nor the service.
TASKS: dict[QueueName, str] = {
    "synth": "dearkd.work.worker.synthesize",
    "train": "dearkd.work.worker.train",
    "inspect": "dearkd.work.worker.inspect",
}

# By name as well: what a task imports before it works, torch with it.
CODE: dict[QueueName, str] = {
    "synth": "dearkd_synth.service.job",
    "train": "dearkd_trainer.service.job",
    "inspect": "dearkd.vision.inspector",
}

# A task that outlives its worker's interest is ended by cancel or lease; these bounds are the last resort.
TIMEOUT_SECONDS: dict[QueueName, int] = {"synth": 7 * 86400, "train": 30 * 86400, "inspect": 3600}

SILENCE_SECONDS = 45
"""A live rq worker says every 15 s that it is there."""


def queue(redis: Redis, name: QueueName) -> Queue:
    return Queue(name, connection=redis, serializer=JSONSerializer, default_timeout=TIMEOUT_SECONDS[name])


def wake(redis: Redis, name: QueueName, argument: str, *, pipeline: Pipeline | None = None) -> None:
    """Enqueue a wake-up; with a pipeline that is in MULTI, as part of its transaction."""
    queue(redis, name).enqueue(
        TASKS[name],
        argument,
        job_timeout=TIMEOUT_SECONDS[name],
        result_ttl=0,
        failure_ttl=3600,
        description=f"{name} {argument}",
        pipeline=pipeline,
    )


def step_key(argument: str) -> str:
    """The key that a task with a time limit for each step changes at each step: see `dearkd.work.listener`."""
    return f"dearkd:step:{argument}"


def alive(redis: Redis, name: QueueName) -> int:
    """Count the workers that listen on a queue and were heard of lately."""
    # rq keeps the name of a worker that was killed until another one tidies up.
    since = datetime.now(UTC) - timedelta(seconds=SILENCE_SECONDS)
    heard = [worker.last_heartbeat for worker in Worker.all(queue=queue(redis, name))]
    return sum(moment is not None and moment.replace(tzinfo=UTC) > since for moment in heard)


def require_worker(redis: Redis, name: QueueName) -> None:
    """Raise `Unavailable` (`inspector_unavailable`) if no worker that listens on a queue was heard of lately."""
    if not alive(redis, name):
        raise Unavailable(
            f"no worker listens on the {name!r} queue, so this cannot be checked now: start `dearkd worker synth` "
            "(or `dearkd up`) and try again",
            code="inspector_unavailable",
        )
