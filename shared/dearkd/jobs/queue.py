"""rq wiring. Tasks are wake-ups: what is to be done stands in the job records, never in a task.

The rules come from measurements on rq 3.0 (DESIGN.md): the JSON serializer on both sides, a job id as a task's only
argument, one queue a worker, an explicit timeout, and no use of rq's results, dependencies or statuses.
"""

from typing import Literal

from rq import Queue, worker_registration
from rq.serializers import JSONSerializer

from dearkd.choices import Kind
from dearkd.errors import Unavailable
from dearkd.jobs.offers import NEEDS, WAITS, Needs, Offer, offers
from dearkd.jobs.scripts import Transition
from dearkd.redis_client import Pipeline, Redis, job_key

QueueName = Literal["synth", "train", "inspect"]

QUEUES: dict[Kind, QueueName] = {"synthesis": "synth", "training": "train"}
WORKERS: dict[Kind, str] = {"synthesis": "synth", "training": "trainer"}
"""Kinds of workers, as `dearkd worker` takes them."""

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

WAKES_A_ROUND = 128
"""The most wake-ups that `wake_missing` adds at once. The reaper calls it every two seconds: a thousand workers begin
within a quarter of a minute."""
ROUSE_SECONDS = 20
"""Within so long all workers are woken once for a job that not each can take: those that cannot use it begin a process
for it, and the one that can may be busy for hours."""
LOOKED_AT = 100
"""Jobs that it looks at: the first by priority and turn."""

SILENCE_SECONDS = 45
"""For so long a sign of life of an rq worker counts; a live one gives it every 10 s (`listener.SIGN_SECONDS`)."""


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


def wake_missing(redis: Redis, kind: Kind) -> None:
    """Enqueue as many wake-ups as open jobs could use, but for those that wait already and beyond `WAKES_A_ROUND`.

    It makes good what lost tasks cost, and brings a job that many workers may share more than it was accepted with.
    For a job that not every worker can take, all that are there are woken: Redis gives a wake-up to whoever has waited
    longest, and those that cannot use it might do so each time.
    """
    name = QUEUES[kind]
    pipe = redis.pipeline(transaction=False)
    pipe.zrange(f"dearkd:open:{kind}", 0, LOOKED_AT - 1)
    pipe.llen(f"rq:queue:{name}")
    listed, waiting = pipe.execute()
    if not listed or waiting >= WAKES_A_ROUND:
        return
    pipe = redis.pipeline(transaction=False)
    for identifier in listed:
        key = job_key(identifier.decode())
        pipe.hmget(key, "at_once", "parallelism", "waiting_for", *NEEDS)
        pipe.hlen(f"{key}:claims")
        pipe.zcard(f"{key}:open")
    found = pipe.execute()
    wanted: list[str] = []
    there: list[Offer] | None = None
    workers: int | None = None
    for identifier, (at_once, parallelism, waits, *needs), claimed, units in zip(
        listed, found[::3], found[1::3], found[2::3], strict=True
    ):
        if any(needs):
            there = offers(redis, name) if there is None else there
            if not _can_be_taken(redis, identifier.decode(), Needs.of_record(needs), there, waits or b""):
                continue
        # One, where those that look at it leave it alone, or its units are not recorded yet.
        free = 1 if (waits and not claimed) or not units else min(int(at_once or parallelism or 1) - claimed, units)
        if free > 0 and (waits or any(needs)):
            workers = alive(redis, name) if workers is None else workers
            if _may_rouse(redis, identifier.decode(), workers):
                free = max(free, workers)
        wanted += [identifier.decode()] * min(free, WAKES_A_ROUND)
    if not wanted and len(listed) == LOOKED_AT:
        wanted = [listed[-1].decode()]  # behind these there may be others
    woken = wanted[:WAKES_A_ROUND][waiting:]
    pipe = redis.pipeline(transaction=True)
    pipe.multi()
    for identifier in woken:
        wake(redis, name, identifier, pipeline=pipe)
    pipe.execute()


def _may_rouse(redis: Redis, identifier: str, workers: int) -> bool:
    """Tell whether all workers may be woken for a job in this round, of which it takes one for each `WAKES_A_ROUND`."""
    key = f"dearkd:roused:{identifier}"
    pipe = redis.pipeline(transaction=True)
    pipe.set(key, 0, ex=ROUSE_SECONDS, nx=True)
    pipe.incr(key)
    return int(pipe.execute()[1]) <= -(-workers // WAKES_A_ROUND)


def _can_be_taken(redis: Redis, identifier: str, needs: Needs, there: list[Offer], waits: bytes) -> bool:
    """Tell whether a worker that is there has what a job needs; if none has, the job says what it `waits` for."""
    fits = any(offer.fits(needs) for offer in there)
    what = None if fits else needs.waiting_for(there)
    if waits.decode() != what if what else waits.startswith(WAITS.encode()):
        Transition(redis, "wait_for")(id=identifier, what=what)
    return fits


def step_key(argument: str) -> str:
    """The key that a task with a time limit for each step changes at each step: see `dearkd.work.listener`."""
    return f"dearkd:step:{argument}"


def alive(redis: Redis, name: QueueName) -> int:
    """Count the workers that listen on a queue and were heard of lately."""
    # rq keeps the name of a worker that was killed until another one tidies up. Its record runs out by Redis' clock,
    # `SILENCE_SECONDS` after the last sign of life (that of an earlier version's worker after 60 to 90 s); the time
    # that stands in it is of the worker's own clock.
    pipe = redis.pipeline(transaction=False)  # rq's own list of workers costs three round trips for each of them
    for key in worker_registration.get_keys(queue(redis, name)):
        pipe.pttl(key)
    return sum(left > 0 for left in pipe.execute())


def listening(redis: Redis, kind: Kind) -> list[Offer] | None:
    """The offers of the workers of a kind that are there, each once; None where no worker is there at all."""
    found = offers(redis, QUEUES[kind])
    return found if found or alive(redis, QUEUES[kind]) else None


def awaited_worker(kind: Kind, needs: Needs, there: list[Offer] | None) -> str | None:
    """The clause that tells what a queued job waits for; None where a worker of those that are `listening` fits."""
    if there is None:
        return (
            f"a worker: none listens on the {QUEUES[kind]!r} queue (`dearkd worker {WORKERS[kind]}` or `dearkd up` "
            "starts one)"
        )
    return None if needs == Needs() or any(offer.fits(needs) for offer in there) else needs.waiting_for(there)


def require_worker(redis: Redis, name: QueueName) -> None:
    """Raise `Unavailable` (`inspector_unavailable`) if no worker that listens on a queue was heard of lately."""
    if not alive(redis, name):
        raise Unavailable(
            f"no worker listens on the {name!r} queue, so this cannot be checked now: start `dearkd worker synth` "
            "(or `dearkd up`) and try again",
            code="inspector_unavailable",
        )
