"""Ends of a worker's processes, and words for them. Nothing here touches storage: see `dearkd.work.listener`."""

import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, cast

import psutil
from pydantic import BaseModel, ConfigDict

from dearkd.jobs import measures
from dearkd.redis_client import Redis

HUNG = 113
"""Exit code of a process that ended itself since its work hung."""
INSPECTOR_DEATHS = "dearkd:inspection:deaths"
"""Hash: the id of a ticket → how its inspector died."""


class InspectorDeath(BaseModel):
    """The reason why an inspector did not answer on its ticket."""

    model_config = ConfigDict(frozen=True)

    cause: str
    too_large: bool = False
    """True if what it inspected asked for more memory or time than is allowed."""


def holder(*pids: int) -> str:
    """A name for a process among all machines: its host, and pids from its rq worker down to itself."""
    return "/".join((socket.gethostname(), *map(str, pids)))


def exit_clause(code: int) -> str:
    """Tell how a process ended by its exit code, which is negative for a signal."""
    if code == HUNG:
        return "made no step for too long (DEARKD_STALL_SECONDS) and was ended"
    if code >= 0:
        return f"ended with exit code {code}"
    memory = ", by hand or by the kernel for lack of memory" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"


def end_this_process(code: int = -signal.SIGKILL) -> None:
    """End it at once, with all that it started: those in sessions of their own (torchrun's) would go on without it."""
    below = [process.pid for process in psutil.Process().children(recursive=True)]
    # No other thread may run from here on: the main thread would take the end of its children for a fault of the job.
    sys.setswitchinterval(3600)
    for pid in below:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if code >= 0:
        os._exit(code)
    os.kill(os.getpid(), -code)


def note_inspector_death(redis: Redis, ticket: str, death: InspectorDeath) -> None:
    """Leave word for whoever has storage at hand: the API that waits for the answer, or the reaper."""
    pipe = redis.pipeline(transaction=True)
    pipe.hset(INSPECTOR_DEATHS, ticket, death.model_dump_json())
    pipe.hincrby(measures.KEY, measures.INSPECTOR_DEATHS.field(), 1)
    pipe.execute()


def inspector_death(redis: Redis, ticket: str) -> InspectorDeath | None:
    """The note, if there is one."""
    text = cast("bytes | None", redis.hget(INSPECTOR_DEATHS, ticket))
    return None if text is None else InspectorDeath.model_validate_json(text)


def peak_clause(usage: Any) -> str:
    """The most memory that a process had, by what `wait4` says of it; "" where that is not known."""
    return "" if usage is None else f" (peak memory {peak_bytes(usage) / 2**30:.1f} GiB)"


def peak_bytes(usage: Any) -> int:
    """The most memory that a process had, in bytes."""
    return int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def is_near_limit(usage: Any, limit: int, *, aborted: bool = False) -> bool:
    """Tell whether a process had so much memory that its end, whatever it says of it, is put down to the limit.

    Who is refused memory seldom says so: native code ends its process, and a runtime that cannot start a thread panics.

    Args:
        usage: what `wait4` or `getrusage` says of it.
        limit: in bytes.
        aborted: it ended by SIGABRT, as native code does that is refused memory: much of it at once, it may be, so that
            the peak lies far below the limit.
    """
    return usage is not None and peak_bytes(usage) > (0.5 if aborted else 0.8) * limit
