"""The live picture on terminals of several kinds: each a pseudo terminal that answers as such a one does."""

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fcntl import ioctl
from importlib.util import find_spec

import pytest
from PIL import Image
from rich.console import Console

from dearkd.cli.pictures import HalfBlocks
from tests.support.api_contents import png
from tests.support.stand_in_api import StandInApi, a_job

pytestmark = pytest.mark.services

ASKED_FOR_ATTRIBUTES = b"\x1b[c"
ASKED_FOR_KITTYS = re.compile(rb"\x1b_G(?:[^;]*,)?i=(\d+)[^;]*;AAAA\x1b\\")
NEEDS_GRAPHICS = pytest.mark.skipif(find_spec("textual_image") is None, reason="needs the extra `terminal`")


@dataclass(frozen=True)
class Terminal:
    """What a terminal says when it is asked what it can."""

    attributes: bytes = b"\x1b[?62;22c"
    kitty: bool = False

    def answer(self, written: bytes) -> bytes:
        if written.endswith(ASKED_FOR_ATTRIBUTES):
            return self.attributes
        asked = ASKED_FOR_KITTYS.search(written)
        return b"\x1b_Gi=" + asked[1] + b";OK\x1b\\" if self.kitty and asked else b""


def watching(terminal: Terminal, *options: str, environment: Mapping[str, str] | None = None) -> bytes:
    """All that `dearkd watch` writes to a terminal."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 800, 800))
    command = [sys.executable, "-m", "dearkd.cli", "watch", "syn-1", *options]
    told = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **(environment or {})}
    started = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=told, preexec_fn=_with_this_terminal
    )
    os.close(theirs)
    written = b""
    try:
        while select.select([ours], [], [], 120)[0]:
            part = b""
            with suppress(OSError):  # nobody is at the other end any more
                part = os.read(ours, 65536)
            if not part:
                break
            written += part
            answer = terminal.answer(written)
            if answer:
                os.write(ours, answer)
        assert started.wait(60) == 0, written
    finally:
        os.close(ours)
        if started.poll() is None:
            started.kill()
            started.wait()
    return written


def _with_this_terminal() -> None:
    os.setsid()
    ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def job(api: StandInApi) -> StandInApi:
    """A job that runs for three looks at it, and whose picture is a red square."""
    call = "GET /v1/synthesis-jobs/syn-1"
    for status in ("running", "running", "running"):
        api.answer(call, a_job(status=status))
    api.answer(call, a_job(status="succeeded", result={"dataset": "ds-1"}))
    api.answer("GET /v1/synthesis-jobs/syn-1/live.png", png(16, "RGB", 200))
    return api


def looked(api: StandInApi) -> int:
    return len([request for request in api.requests if request.path.endswith("live.png")])


def test_a_terminal_of_characters_shows_half_blocks(job: StandInApi) -> None:
    shown = watching(Terminal())
    assert "▀".encode() in shown
    assert b"38;2;200;200;200;48;2;200;200;200" in shown
    assert b"\x1bP" not in shown.replace(b"\x1b_G", b"")
    assert b"syn-1 succeeded" in shown
    assert looked(job) >= 1


@NEEDS_GRAPHICS
def test_a_terminal_of_sixels_shows_sixels(job: StandInApi) -> None:
    shown = watching(Terminal(attributes=b"\x1b[?62;4;22c"))
    assert re.search(rb"\x1bP[0-9;]*q\"1;1;\d+;\d+", shown)
    assert "▀".encode() not in shown


@NEEDS_GRAPHICS
def test_kitty_is_sent_the_picture_itself(job: StandInApi) -> None:
    shown = watching(Terminal(kitty=True))
    assert re.search(rb"\x1b_Gi=\d+,m=[01],f=100,q=2;", shown)
    assert "\U0010eeee".encode() in shown, "and told where it stands"
    assert "▀".encode() not in shown


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (["--no-pictures"], {}),
        (["--json"], {}),
        ([], {"TERM": "dumb"}),
        ([], {"NO_COLOR": "1"}),
    ],
    ids=["--no-pictures", "--json", "dumb", "no colour"],
)
def test_none_is_asked_for_where_none_can_or_shall_be_shown(
    job: StandInApi, options: list[str], environment: dict[str, str]
) -> None:
    shown = watching(Terminal(), *options, environment=environment)
    assert "▀".encode() not in shown
    assert looked(job) == 0


def test_none_is_asked_for_where_there_is_no_terminal(job: StandInApi) -> None:
    done = subprocess.run([sys.executable, "-m", "dearkd.cli", "watch", "syn-1"], capture_output=True, timeout=60)
    assert done.returncode == 0
    assert looked(job) == 0


def test_a_picture_that_is_none_does_not_end_the_watching(api: StandInApi) -> None:
    call = "GET /v1/synthesis-jobs/syn-1"
    api.answer(call, a_job())
    api.answer(call, a_job(status="succeeded", result={"dataset": "ds-1"}))
    api.answer("GET /v1/synthesis-jobs/syn-1/live.png", b"<html>a proxy's page</html>")
    assert b"syn-1 succeeded" in watching(Terminal())


@pytest.mark.parametrize(("size", "rows", "expected"), [((20, 10), 24, (40, 10)), ((12, 40), 5, (3, 5))])
def test_half_blocks_are_two_pixels_each_and_fit(size: tuple[int, int], rows: int, expected: tuple[int, int]) -> None:
    """The upper half is the character's colour, the lower one its background."""
    picture = Image.new("RGB", size, (250, 0, 0))
    picture.paste((0, 0, 250), (0, size[1] // 2, *size))
    console = Console(width=40, color_system="truecolor", force_terminal=True)
    lines = console.render_lines(HalfBlocks(picture, rows), pad=False)
    cells = [[segment for segment in line if segment.text == "▀"] for line in lines]
    assert (max(map(len, cells)), len(cells)) == expected
    first, last = cells[0][0].style, cells[-1][-1].style
    assert first is not None
    assert last is not None
    colours: list[Callable[[], object]] = [first.color.get_truecolor, last.bgcolor.get_truecolor]
    assert [tuple(colour()) for colour in colours] == [(250, 0, 0), (0, 0, 250)]
