"""Sinks that show a run's metrics besides `metrics.jsonl`, the run's own record: TensorBoard, MLflow, W&B, Trackio.

`DEARKD_METRICS_SINKS` names them; TensorBoard is the default if it is installed. None of them can fail or stop a
run: an error is logged once, and that sink is not used any more. They are given a run's rows as they
come; after a restart, rows since the last checkpoint come again, under the same epochs. W&B and Trackio are run by
hand, not in CI: Trackio asks for an older Pillow, and both for much besides.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from dearkd.errors import InvalidInput

log = logging.getLogger(__name__)

Row = Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The facts of a run that a sink gets before its first row."""

    id: str
    name: str
    spec: Mapping[str, Any]
    folder: Path
    """The folder of sinks that write files; kept from attempt to attempt."""
    first_epoch: int = 0
    """Epochs that are done already, and were shown before."""


class Sink(Protocol):
    """Something that shows rows of metrics."""

    def row(self, metrics: Row) -> None:
        """Show a row: `epoch` and other numbers by name. May raise anything."""
        ...

    def close(self) -> None:
        """Finish whatever is under way. May raise anything."""
        ...


class Sinks:
    """Several sinks as one that never raises.

    Args:
        names: of `KINDS`.
        run: what they show.

    Raises:
        InvalidInput: if there is no sink of some name. One whose package is missing, or that cannot be opened, is left
            out and logged.
    """

    def __init__(self, names: Sequence[str], run: RunInfo) -> None:
        self._open: dict[str, Sink] = {}
        for name in names:
            if name not in KINDS:
                raise InvalidInput(f"DEARKD_METRICS_SINKS names {name!r}: there are {', '.join(sorted(KINDS))}")
        for name in names:
            try:
                self._open[name] = KINDS[name](run)
            except Exception as error:
                log.warning("metrics are not shown in %s, which cannot be opened: %s", name, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def row(self, metrics: Row) -> None:
        for name, sink in list(self._open.items()):
            try:
                sink.row(metrics)
            except Exception as error:
                log.warning("metrics are no longer shown in %s: %s", name, error)
                del self._open[name]

    def close(self) -> None:
        for name, sink in self._open.items():
            try:
                sink.close()
            except Exception as error:
                log.warning("%s was not closed properly: %s", name, error)
        self._open.clear()


class TensorBoard:
    """Event files under `{folder}/{run id}`, for `tensorboard --logdir {folder}` (extra `tensorboard`)."""

    def __init__(self, run: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an attempt before this one told of later epochs is taken back.
        self._writer = SummaryWriter(str(run.folder / run.id), purge_step=run.first_epoch + 1)
        self._writer.add_text("spec", _as_text(run.spec), run.first_epoch)

    def row(self, metrics: Row) -> None:
        for name, value in _values(metrics).items():
            self._writer.add_scalar(name, value, int(metrics["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run named by ours, tagged `dearkd.run`, in the experiment `dearkd`; `MLFLOW_TRACKING_URI` says where.

    An attempt that goes on with a run goes on with MLflow's too.
    """

    def __init__(self, run: RunInfo) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name("dearkd")
        experiment = found.experiment_id if found is not None else self._client.create_experiment("dearkd")
        before = self._client.search_runs([experiment], f"tags.`dearkd.run` = '{run.id}'", max_results=1)
        if before:
            self._run = before[0].info.run_id
            self._client.update_run(self._run, "RUNNING")
        else:
            self._run = self._client.create_run(experiment, run_name=run.name, tags={"dearkd.run": run.id}).info.run_id
            for name, value in _flat(run.spec).items():
                self._client.log_param(self._run, name, value)

    def row(self, metrics: Row) -> None:
        for name, value in _values(metrics).items():
            self._client.log_metric(self._run, name, value, step=int(metrics["epoch"]))

    def close(self) -> None:
        self._client.set_terminated(self._run)


class WandB:
    """A run of the same id in the project `dearkd` (or `WANDB_PROJECT`); `WANDB_MODE=offline` works too."""

    def __init__(self, run: RunInfo) -> None:
        import os

        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "dearkd"),
            id=run.id,
            name=run.name,
            config=dict(run.spec),
            dir=str(run.folder),
            resume="allow",
        )

    def row(self, metrics: Row) -> None:
        self._run.log(_values(metrics), step=int(metrics["epoch"]))

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run named by our id in the project `dearkd`, kept on this machine (`trackio show`)."""

    def __init__(self, run: RunInfo) -> None:
        import trackio

        self._run = trackio.init(project="dearkd", name=run.id, config=dict(run.spec), resume="allow")

    def row(self, metrics: Row) -> None:
        self._run.log(_values(metrics), step=int(metrics["epoch"]))

    def close(self) -> None:
        self._run.finish()


KINDS: Mapping[str, Callable[[RunInfo], Sink]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
    "trackio": Trackio,
}


def _values(metrics: Row) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if name != "epoch"}


def _flat(spec: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Parameters by their path: `student.depth`. MLflow takes up to 6000 characters of each."""
    found: dict[str, str] = {}
    for name, value in spec.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)[:6000]
    return found


def _as_text(spec: Mapping[str, Any]) -> str:
    return "\n".join(f"    {name} = {value}" for name, value in _flat(spec).items())
