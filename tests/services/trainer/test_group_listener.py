"""The port at which a group's processes report: whoever else connects to it gets no further than a first line."""

import json
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest

from dearkd.work.attempt import Died
from dearkd_trainer.service import group as group_module
from dearkd_trainer.service.group import STRANGERS, Group, Reporter
from dearkd_trainer.service.link import LAUNCHER
from dearkd_trainer.service.ray_group import RayGroup

pytestmark = [pytest.mark.services, pytest.mark.timeout(60), pytest.mark.filterwarnings("error")]

TOKEN = "0123456789abcdef" * 2


class Listening(RayGroup):
    """A run's group on a cluster whose processes are the test's own."""

    def __init__(self, directory: Path, head: socket.socket) -> None:
        Group.__init__(self, 2, directory, check=lambda: None, note=print)
        self.cluster = "{}:{}".format(*head.getsockname())
        self._token = TOKEN

    def _launch(self, folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "60"], start_new_session=True)

    def connect(self) -> socket.socket:
        return socket.create_connection(self._address, timeout=20)

    def next(self) -> tuple[int, dict[str, Any] | None]:
        return self._inbox.get(timeout=20)


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    monkeypatch.setattr(group_module, "EXIT_SECONDS", 0.0)
    monkeypatch.setattr(group_module, "HELLO_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as head, Listening(tmp_path, head) as found:
        yield found


def greeted(group: Listening, rank: int = 0) -> socket.socket:
    """A connection of one of the run's processes."""
    connection = group.connect()
    connection.sendall(json.dumps([rank, TOKEN]).encode() + b"\n")
    return connection


def is_refused(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def still_admits(group: Listening) -> bool:
    with greeted(group) as connection:
        connection.sendall(b'{"what": "note"}\n')
        return group.next() == (0, {"what": "note"})


@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"7",
        b"[]",
        b"[0]",
        b'{"rank": 0, "token": "x"}',
        b"[" * 200,
        b"\xff\xfe",
        b"GET / HTTP/1.1\r",
        b'[0, "another"]',
        b"[0, null]",
        '[0, "\N{SNOWMAN}"]'.encode(),
        rb'[0, "\ud800"]',
        f'[null, "{TOKEN}"]'.encode(),
        f'[1e999, "{TOKEN}"]'.encode(),
        f'[0, "{TOKEN}"]'.encode() + b" " * 4096,
    ],
)
def test_who_does_not_say_the_runs_token_is_sent_away_alone(group: Listening, line: bytes) -> None:
    with greeted(group, rank=1) as before, group.connect() as stranger:
        stranger.sendall(line + b"\n")
        assert is_refused(stranger)
        assert still_admits(group)
        assert group.next() == (0, None)
        before.sendall(b'{"what": "step"}\n')
        assert group.next() == (1, {"what": "step"})
    assert group.next() == (1, None)
    assert group._inbox.empty(), "nothing came of the stranger"


def test_a_line_without_an_end_is_not_kept(group: Listening) -> None:
    sent = 0
    with group.connect() as stranger, suppress(ConnectionError):
        for _ in range(64):
            stranger.sendall(b"x" * 2**20)
            sent += 1
    # What the kernel took before it was told that nobody reads.
    assert sent < 32
    assert still_admits(group)


@pytest.mark.parametrize("says", [b"", b" "])
def test_who_says_nothing_in_time_is_sent_away_however_slowly_it_goes_on(group: Listening, says: bytes) -> None:
    began = time.monotonic()
    with group.connect() as stranger, suppress(ConnectionError):
        stranger.settimeout(0.3)
        while time.monotonic() - began < 15:
            stranger.sendall(says)
            with suppress(TimeoutError):
                if is_refused(stranger):
                    break
    assert time.monotonic() - began < 10
    assert still_admits(group)


def test_many_who_say_nothing_cost_few_threads_and_the_runs_processes_get_through(
    group: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading() -> int:
        return sum(thread.name == "rank" for thread in threading.enumerate())

    monkeypatch.setattr(group_module, "HELLO_SECONDS", 8.0)
    strangers, most = [], 0
    try:
        for _ in range(STRANGERS + 2):  # two wait in the backlog
            strangers.append(group.connect())
            most = max(most, reading())
        until = time.monotonic() + 6
        while most < STRANGERS and time.monotonic() < until:  # a busy machine is slow to accept them
            time.sleep(0.05)
            most = max(most, reading())
        for _ in range(10):
            time.sleep(0.05)
            most = max(most, reading())
        assert most == STRANGERS
        assert still_admits(group), "when the first of them were sent away"
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_message_is_as_long_as_a_result_and_no_longer(group: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    confusion = [[1 / 3] * 500] * 500
    ended = {"what": "ended", "result": {"confusion": confusion}}
    with greeted(group) as first:
        first.sendall(json.dumps(ended).encode() + b"\n")
        assert group.next() == (0, ended)
    assert group.next() == (0, None)
    monkeypatch.setattr(group_module, "LINE_BYTES", 1000)
    with greeted(group, rank=1) as other:
        other.sendall(json.dumps({"what": "note", "line": "x" * 900}).encode() + b"\n")
        assert group.next() == (1, {"what": "note", "line": "x" * 900})
        other.sendall(b"x" * 1001)
        assert group.next() == (1, None)
        assert is_refused(other)
    with pytest.raises(queue.Empty):
        group._inbox.get(timeout=0.1)


class Room:
    """A reporter that keeps what the run waits for."""

    def __init__(self) -> None:
        self.waits: list[str | None] = []

    def on_wait(self, what: str | None) -> None:
        self.waits.append(what)


def test_a_launcher_that_starts_nothing_is_given_up_unless_there_is_no_room(
    group: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends_within(seconds: float) -> bool:
        running.join(seconds)
        return not running.is_alive()

    def watch() -> None:
        with pytest.raises(Died, match=r"none of the run.s processes was there 1 seconds after"):
            group.run(cast(Reporter, room))

    monkeypatch.setattr(group_module, "START_SECONDS", 1.0)
    room = Room()
    running = threading.Thread(target=watch, daemon=True)
    with greeted(group, rank=LAUNCHER) as launcher:
        launcher.sendall(b'{"what": "waits", "why": "room"}\n')
        running.start()
        assert not ends_within(2.5)
        launcher.sendall(b'{"what": "waits", "why": null}\n')
        assert ends_within(10)
    assert room.waits == ["room", None]


def test_processes_that_are_there_may_take_their_time(group: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "START_SECONDS", 0.5)
    monkeypatch.setattr(group, "check", ask := Mock())
    ask.side_effect = [None] * 8 + [KeyboardInterrupt]  # looked at five times a second
    with greeted(group, rank=1), pytest.raises(KeyboardInterrupt):
        group.run(cast(Reporter, Room()))
