"""The state that the demo's steps share: the client, where things lie, and the clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from dearkd.cli.watching import watch
from dearkd.client import Client, Json
from dearkd.errors import DearKDError
from dearkd.storage.objects import Storage
from dearkd_trainer.demo.digits import Digits, store_digits


@dataclass
class Demo:
    """The state that the steps share."""

    client: Client
    storage: Storage
    folder: Path
    console: Console
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """Announce a step, and keep its time under `name`."""
        self.console.print(f"[bold]{title}[/bold]")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)

    def register(self, digits: Digits, name: str) -> Json:
        return self.client.create_dataset(store_digits(digits, self.storage, self.folder), name)

    def finished(self, job: str) -> Json:
        """Watch a job to its end.

        Raises:
            DearKDError: if it does not succeed.
        """
        ended = watch(self.client, job, self.console)
        if ended["status"] != "succeeded":
            error = ended["error"] or {"code": ended["status"], "message": "it was canceled"}
            raise DearKDError(f"{job} {ended['status']}: {error['message']}", code=error["code"])
        return ended
