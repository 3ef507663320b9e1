"""One process tree a data folder: `up.lock` is locked while a process of the tree lives, and names the tree's root."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO

import psutil

from dearkd.errors import Conflict
from dearkd.local import process_tree


def lock_folder(data: Path) -> IO[str]:
    """Take a folder's lock; it lasts until the last process that inherited the file has closed it.

    Raises:
        Conflict: if another tree has it. Where only the remains of one have, waits for their end instead.
    """
    lock = (data / "up.lock").open("a+", encoding="utf-8")
    deadline = time.monotonic() + 2 * process_tree.GRACE_SECONDS + process_tree.KILL_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = _read_owner(lock.read())
            if owner is not None and not psutil.pid_exists(owner[0]) and time.monotonic() < deadline:
                time.sleep(0.1)  # it was killed, and its guardian is still ending its parts
                continue
            lock.close()
            who, stop = (f" (pid {owner[0]}, {owner[1]})", f" with `kill {owner[0]}`") if owner else ("", "")
            raise Conflict(
                f"{data} is in use by another `dearkd up`{who}: use that one, stop it{stop}, "
                "or choose another folder with --data",
                code="data_folder_in_use",
            ) from None
        else:
            return lock


def write_owner(lock: IO[str], url: str) -> None:
    """Say in the lock file who has it."""
    lock.truncate(0)
    lock.write(json.dumps({"pid": os.getpid(), "url": url}) + "\n")
    lock.flush()


def _read_owner(text: str) -> tuple[int, str] | None:
    try:
        owner = json.loads(text)
        return int(owner["pid"]), str(owner["url"])
    except (ValueError, KeyError, TypeError):
        return None  # it has the lock and has not written yet
