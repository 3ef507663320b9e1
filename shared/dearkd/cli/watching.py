"""A job's progress on a terminal: images or epochs, rate, time left, latest losses, and the images at work."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from dearkd.answers import JobView
from dearkd.client import Client
from dearkd.errors import DearKDError
from dearkd.jobs.model import Job
from dearkd.jobs.model import Progress as JobProgress
from dearkd.names import printable

if TYPE_CHECKING:
    from dearkd.cli.pictures import TerminalPictures

LINE_STEPS = 10
"""Progress lines printed per job when the output is no terminal: one for each tenth that is done."""

PICTURE_SECONDS = 2.0
"""Seconds between two looks at the live picture; workers store one as often."""

LOOKED_UP = ("attention_distance_", "first_preview_seconds", "peak_memory", "threads")
"""Metrics that a line of progress leaves out: one looks them up afterwards."""


def watch(
    client: Client,
    identifier: str,
    console: Console,
    *,
    pictures: bool = True,
    on_picture: Callable[[bytes], None] | None = None,
) -> JobView:
    """Show a job until it has ended, and return it: a live bar on a terminal, else a line now and then.

    Args:
        client: of the API.
        identifier: the job's id.
        console: where to show it.
        pictures: whether to show the images at work, where the console is a terminal in colour.
        on_picture: called with each live picture, a PNG, whether it is shown or not.

    Raises:
        NotFound: if there is no such job.
        Unavailable: if the API is out of reach for longer than the client's patience.
    """
    terminal = _terminal_pictures(console) if pictures and console.is_terminal else None
    look = LivePicture(client).look if terminal is not None or on_picture is not None else None
    display = JobDisplay()
    # Transient: the caller says how it ended, which is what should stay in the scrollback. A picture is drawn anew only
    # with the job, once a second: it is many times the bytes of a bar.
    live = Live(display, console=console, refresh_per_second=8, auto_refresh=terminal is None, transient=True)
    show = display.update if console.is_terminal else _line_printer(console)

    def update(job: JobView) -> None:
        show(job)
        picture = look(job) if look is not None else None
        if picture is not None and on_picture is not None:
            on_picture(picture)
        if picture is not None and terminal is not None:
            display.picture = terminal.render(picture)
        if terminal is not None:
            live.refresh()

    with live if console.is_terminal else nullcontext():
        return client.wait(identifier, on_progress=update)


def _terminal_pictures(console: Console) -> "TerminalPictures | None":
    from dearkd.cli.pictures import TerminalPictures  # and Pillow with it

    return TerminalPictures(console) if TerminalPictures.shown_on(console) else None


class LivePicture:
    """The live picture of a synthesis job, looked at now and then. Without one, or an API, there is simply none."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._due = 0.0
        self._last = b""

    def look(self, job: Job) -> bytes | None:
        """The picture, if it is time and there is another than before."""
        if job.kind != "synthesis" or job.status != "running" or time.monotonic() < self._due:
            return None
        self._due = time.monotonic() + PICTURE_SECONDS
        try:
            picture = self._client.get_live_preview(job.id)
        except DearKDError:
            return None
        if picture == self._last:
            return None
        self._last = picture
        return picture


class JobDisplay:
    """A renderable that shows the last job it was given."""

    def __init__(self) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[done]}"),
            TextColumn("[cyan]{task.fields[rate]}"),
            TextColumn("[dim]{task.fields[left]}"),
        )
        self._task = self._bar.add_task("", total=None, done="", rate="", left="")
        self._metrics = ""
        self.picture: RenderableType | None = None
        """The picture below, if there is one."""

    def update(self, job: Job) -> None:
        progress = job.progress
        self._bar.update(
            self._task,
            description=f"{escape(title(job))} [bold]{job.status}[/bold]",
            completed=progress.done,
            # Without a total the bar pulses; it should rest while nothing happens.
            total=progress.total or (None if job.status == "running" else 1),
            done=count(progress),
            rate=rate(progress),
            left=time_left(progress),
        )
        if job.waiting_for:
            self._metrics = f"waits for {job.waiting_for}"
        else:
            self._metrics = next_try(job) if job.retry_at else metrics_text(job.metrics)

    def __rich__(self) -> Group:
        below = Text(f"  {self._metrics}", style="dim", no_wrap=True, overflow="ellipsis")
        return Group(self._bar, below, *([self.picture] if self.picture is not None else []))


def _line_printer(console: Console) -> Callable[[Job], None]:
    last: tuple[str, int, str | None] | None = None

    def show(job: Job) -> None:
        nonlocal last
        progress = job.progress
        mark = (job.status, int(LINE_STEPS * progress.done / progress.total) if progress.total else 0, job.waiting_for)
        if mark == last:
            return
        last = mark
        parts = [count(progress)]
        if job.status == "running":
            parts += [rate(progress), time_left(progress), metrics_text(job.metrics)]
        if job.retry_at:
            parts.append(next_try(job))
        if job.waiting_for:
            parts.append(f"waits for {job.waiting_for}")
        console.print(
            f"{title(job)} {job.status} {', '.join(part for part in parts if part)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    return show


def title(job: Job) -> str:
    """The title of a job: its name with its id, or the id alone."""
    name = job.name
    return f"{printable(name)} ({job.id})" if name else job.id


def count(progress: JobProgress) -> str:
    """`1,200/2,000 images`."""
    total = f"/{progress.total:,}" if progress.total is not None else ""
    return f"{progress.done:,}{total} {progress.unit}"


def next_try(job: Job) -> str:
    """`tried again at 09:31:10, since it failed: no room is left`; the time is this machine's."""
    assert job.retry_at is not None
    reason = printable(job.error.message.partition("\n")[0]) if job.error else ""
    return f"tried again at {job.retry_at.astimezone():%H:%M:%S}, since it failed: {reason}"


def rate(progress: JobProgress) -> str:
    """`12.5 images/s`, or, where one takes longer than a second, `8.0 s/epoch`."""
    per_second = progress.per_second
    if not per_second:
        return ""
    if per_second >= 1:
        return f"{per_second:.1f} {progress.unit}/s"
    return f"{1 / per_second:.1f} s/{progress.unit.removesuffix('s')}"


def time_left(progress: JobProgress) -> str:
    """`1:02:03 left`."""
    seconds = progress.eta_seconds
    return "" if seconds is None else f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """`0:07`, `12:34` or `1:02:03`."""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Latest values by name: whole numbers (stage, epoch, shard) first, then losses and rates to four digits."""
    shown = {name: value for name, value in metrics.items() if not name.startswith(LOOKED_UP)}
    whole = [f"{_words(name)} {value}" for name, value in shown.items() if type(value) is int]
    real = [f"{_words(name)} {value:.4g}" for name, value in shown.items() if type(value) is float]
    return " · ".join(whole + real)


def _words(name: str) -> str:
    return name.replace("_", " ")
