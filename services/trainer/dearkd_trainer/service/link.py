"""The connection of a process of a run's group to the one that watches over it: lines of JSON, and files."""

import json
import os
import queue
import socket
import threading
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from dearkd.errors import DearKDError, DiskFull
from dearkd.storage.objects import is_disk_full

Message = dict[str, Any]

LAUNCHER = -1
"""The rank by which a launcher of our own reports."""
CHUNK = 2**20
CONNECT_SECONDS = 30.0
SILENCE_SECONDS = 30.0
"""The time after which a machine that no longer answers counts as gone."""


class ParentLink:
    """The connection to the process that watches over the group; when it closes, this process exits at once.

    Args:
        address: the path of a Unix socket, or host and port.
        hello: who this is, for the first line.
    """

    def __init__(self, address: Path | tuple[str, int], hello: list[Any]) -> None:
        if isinstance(address, Path):
            self._connection = socket.socket(socket.AF_UNIX)
            self._connection.connect(str(address))
        else:
            self._connection = socket.create_connection(address, timeout=CONNECT_SECONDS)
            self._connection.settimeout(None)
            notice_silence(self._connection)
        self._sending = threading.Lock()
        self._sent: dict[str, tuple[int, int]] = {}
        self._send(hello)
        self._replies: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.wants_checkpoint = threading.Event()
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def report(self, what: str, **more: Any) -> None:
        self._send({"what": what, **more})

    def report_and_wait(self, what: str, **more: Any) -> None:
        """Send a message, and wait until the parent has dealt with it."""
        self.report(what, **more)
        self._replies.get()

    def send_file(self, folder: Path, name: str) -> None:
        """Send a file of a folder, if it is there and has changed since it was last sent."""
        path = folder / name
        if not path.exists():
            return
        found = path.stat()
        if self._sent.get(name) == (found.st_mtime_ns, found.st_size):
            return
        with self._sending, path.open("rb") as file:
            self._connection.sendall(_line({"what": "file", "name": name, "bytes": found.st_size}))
            self._connection.sendfile(file)
        self._sent[name] = (found.st_mtime_ns, found.st_size)

    def _send(self, message: Any) -> None:
        with self._sending:
            self._connection.sendall(_line(message))

    def _listen(self) -> None:
        with suppress(OSError, ValueError), self._connection.makefile("rb") as lines:
            for line in lines:
                if json.loads(line) == "save":
                    self.wants_checkpoint.set()
                else:
                    self._replies.put(None)
        # The parent is gone: whatever this process does no longer counts.
        os._exit(1)


def _line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def receive_file(lines: BinaryIO, folder: Path, message: Message) -> None:
    """Put the file that follows its message into the folder, whole or not at all.

    Raises:
        ValueError: if it names a place outside the folder, or does not come whole.
    """
    name = PurePosixPath(message["name"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"a file {message['name']!r} outside the run's folder: it must be below it")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    left = int(message["bytes"])
    with part.open("wb") as file:
        while left:
            piece = lines.read(min(left, CHUNK))
            if not piece:
                raise ValueError(f"{message['name']} ends {left} bytes early")
            file.write(piece)
            left -= len(piece)
    part.replace(path)


def failure(error: BaseException) -> Message:
    """The report of an error, from which the group raises it again."""
    if is_disk_full(error):
        error = DiskFull(f"no room is left on this worker's disk ({error}): make room and retry")
    known = error if isinstance(error, DearKDError) else None
    return {
        "what": "failed",
        "type": type(error).__name__,
        "message": known.message if known else str(error),
        "code": known.code if known else None,
        "errors": [asdict(found) for found in known.errors] if known else [],
        "traceback": "".join(traceback.format_exception(error)),
    }


def notice_silence(connection: socket.socket) -> None:
    """Have a connection end after `SILENCE_SECONDS` if the machine at its other end is gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sixth = int(SILENCE_SECONDS / 6)
    for name, value in (("TCP_KEEPIDLE", 3 * sixth), ("TCP_KEEPINTVL", sixth), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not on macOS
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
