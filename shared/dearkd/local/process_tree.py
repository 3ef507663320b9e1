"""Ending whole process trees, and a guardian that ends them when the program that started them is gone.

A process and all that it starts, directly or not, are a *family*. Its head is the leader of a session of its own and
has a mark in its environment, and its members are found by either: so one that outlived its parent, opened another
session (torchrun's do) or wrote over its environment (Redis does) is found too.

The guardian (`python -m dearkd.local.process_tree`) reads lines from its standard input: each is a JSON list of
*waves*, a wave being a list of families, and replaces the line before. At the end of input, which the kernel brings
about however the writer ended, it ends the waves one after another.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

import psutil

from dearkd.key_variables import without_keys

MARK = "DEARKD_FAMILY"
GRACE_SECONDS = 10.0
KILL_SECONDS = 10.0
POLL_SECONDS = 0.1


class Family(NamedTuple):
    """The pid of the head, which is also its session's id, and the value of `MARK` in its environment."""

    head: int
    mark: str


def members(families: Collection[Family]) -> list[psutil.Process]:
    """All live processes of these families."""
    heads = {family.head for family in families}
    marks = {family.mark for family in families}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) in heads or process.environ().get(MARK) in marks:
                found.append(process)
    return found


def terminate(
    families: Collection[Family], *, grace_seconds: float = GRACE_SECONDS, hurry: threading.Event | None = None
) -> list[psutil.Process]:
    """Send SIGTERM to the heads; after the grace period, or once `hurry` is set, SIGKILL to every member.

    Heads alone are told, since they know how to end their own children in good order.

    Returns:
        What is still alive: nothing, unless a process hangs in the kernel.
    """
    heads = {family.head for family in families}
    for process in members(families):
        if process.pid in heads:
            with suppress(psutil.Error):
                process.terminate()
    deadline = time.monotonic() + grace_seconds
    while any(process.pid in heads for process in members(families)) and time.monotonic() < deadline:
        if hurry is not None and hurry.is_set():
            break
        time.sleep(POLL_SECONDS)
    return kill(families)


def kill(families: Collection[Family]) -> list[psutil.Process]:
    """Send SIGKILL to every member until none is left; what survives even that is returned."""
    deadline = time.monotonic() + KILL_SECONDS
    while alive := members(families):
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        if time.monotonic() >= deadline:
            return alive
        time.sleep(POLL_SECONDS)
    return []


class Guardian:
    """A process that ends families once this one is gone, however it goes. Not for use by several threads at once.

    Args:
        pass_fds: files that it keeps open until all is ended, such as that of a lock.
    """

    def __init__(self, pass_fds: Sequence[int] = ()) -> None:
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[str] | None = None

    def guard(self, waves: Sequence[Sequence[Family]]) -> None:
        """Name the processes to end from now on, one wave after another."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dearkd.local.process_tree"],
                text=True,
                env=without_keys(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=self._pass_fds,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(waves) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End the guardian, and whatever it guards that is still alive."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process = None


def _guard() -> None:
    """Be the guardian: wait for the end of standard input, then end what its last whole line names."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    waves: Sequence[Sequence[tuple[int, str]]] = ()
    for line in sys.stdin:
        if line.endswith("\n"):
            waves = json.loads(line)
    for wave in waves:
        terminate([Family(*family) for family in wave])


if __name__ == "__main__":
    _guard()
