"""Progress of a distillation: bars in a terminal and in a notebook, where rich alone shows none, and lines in a log."""

import time
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dearkd.cli.watching import LINE_STEPS, duration

SECONDS_BETWEEN = 0.5
"""Time between two pictures of the bars in a notebook: each is a message to the browser."""


class NotebookProgress(Progress):
    """One output of the cell, in place of which each newer picture of the bars is put.

    Rich's own needs ipywidgets, without which it warns and shows nothing, and leaves nothing in a saved notebook.
    """

    def __init__(self, *columns: Any, console: Console) -> None:
        super().__init__(*columns, console=console, auto_refresh=False, disable=console.quiet)
        self._handle: Any = None
        self._shown_at = 0.0

    def start(self) -> None:
        """Put the output into the cell."""
        if not self.disable:
            # By name: who is in a notebook has IPython, and nobody else needs it.
            self._handle = import_module("IPython.display").DisplayHandle()
            self._handle.display(self.make_tasks_table(self.tasks))

    def refresh(self) -> None:
        """Show the bars as they are."""
        if self._handle is not None:
            self._shown_at = time.monotonic()
            self._handle.update(self.make_tasks_table(self.tasks))

    def stop(self) -> None:
        """Show the end; what comes after is not shown."""
        self.refresh()
        self._handle = None

    def update(self, *arguments: Any, **changes: Any) -> None:
        """Change a bar, and show it unless the last picture is still fresh."""
        super().update(*arguments, **changes)
        if time.monotonic() - self._shown_at >= SECONDS_BETWEEN:
            self.refresh()


class LineProgress(Progress):
    """A line for each tenth that is done, for a log, where rich's bars show nothing until the end."""

    def __init__(self, *columns: Any, console: Console) -> None:
        super().__init__(*columns, console=console, auto_refresh=False, disable=console.quiet)
        self._shown: dict[TaskID, int] = {}

    def start(self) -> None:
        """Show nothing yet."""

    def refresh(self) -> None:
        """Show nothing: `update` does."""

    def stop(self) -> None:
        """Show nothing more."""

    def update(self, task_id: TaskID, *arguments: Any, **changes: Any) -> None:
        """Change a bar, and print a line if it has come to another tenth."""
        super().update(task_id, *arguments, **changes)
        task = next(task for task in self.tasks if task.id == task_id)
        if not task.total:
            return
        tenths = int(LINE_STEPS * task.completed / task.total)
        if tenths == self._shown.get(task_id, 0):
            return
        self._shown[task_id] = tenths
        left = f", {duration(task.time_remaining)} left" if task.time_remaining else ""
        count = f"{int(task.completed):,}/{int(task.total):,}"
        self.console.print(f"{task.description} {count}, {duration(task.elapsed or 0)} so far{left}", highlight=False)


def progress_on(console: Console) -> Progress:
    """Bars with counts and times, or lines, for where the console is."""
    columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn())
    kind = NotebookProgress if console.is_jupyter else Progress if console.is_terminal else LineProgress
    return kind(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
