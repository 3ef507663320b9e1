"""The state that the demo's steps share: the client, where things lie, and the clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from dearkd.answers import JobView, RegisteredDataset
from dearkd.cli.watching import watch
from dearkd.client import Client
from dearkd.errors import DearKDError
from dearkd.storage.catalog import Model
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
    pictures: bool = True
    """True to show the images while they are made, on a terminal that can."""
    seconds: dict[str, float] = field(default_factory=dict)
    _pictured: str | None = None

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """Announce a step, and keep its time under `name`."""
        self.console.print(f"[bold]{title}[/bold]")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)

    def register(self, digits: Digits, name: str) -> RegisteredDataset:
        return self.client.create_dataset(store_digits(digits, self.storage, self.folder), name)

    def finished(self, job: str) -> JobView:
        """Watch a job to its end.

        Raises:
            DearKDError: if it does not succeed.
        """
        ended = watch(self.client, job, self.console, pictures=self.pictures, on_picture=partial(self._keep, job))
        if ended.status != "succeeded":
            code, message = (
                (ended.error.code, ended.error.message) if ended.error else (ended.status, "it was canceled")
            )
            raise DearKDError(f"{job} {ended.status}: {message}", code=code)
        return ended

    def _keep(self, job: str, picture: bytes) -> None:
        """Keep the latest picture of the first job's images at work; the grid of finished ones takes its place."""
        path = self.folder / "preview.png"
        if self._pictured is None:
            self._pictured = job
            self.console.print(f"  The images, while they are made: {path}")
        if self._pictured == job:
            path.write_bytes(picture)

    def dataset_of(self, job: JobView) -> RegisteredDataset:
        """The dataset of a synthesis job that succeeded."""
        assert job.result is not None
        return self.client.get_dataset(job.result["dataset"])

    def model_of(self, run: JobView) -> Model:
        """The model of a training run that succeeded."""
        assert run.result is not None
        return self.client.get_model(run.result["model"])

    @staticmethod
    def top1_of(model: Model) -> float:
        """Accuracy on the digits that its run was evaluated on."""
        assert model.accuracy is not None
        return model.accuracy.top1
