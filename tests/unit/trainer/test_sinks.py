"""Sinks of metrics: what they were told is read back from where they keep it; none of them fails a run."""

import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dearkd.errors import InvalidInput
from dearkd.settings import Settings
from dearkd_trainer.service import sinks
from dearkd_trainer.service.sinks import RunInfo, Sinks

SPEC = {"seed": 3, "student": {"depth": 4}}


@pytest.fixture
def about(tmp_path: Path) -> Callable[..., RunInfo]:
    def make(first_epoch: int = 0) -> RunInfo:
        return RunInfo("run-1", "digits, seed 3", SPEC, tmp_path / "metrics", first_epoch)

    return make


def row(epoch: int, loss: float) -> dict[str, int | float]:
    return {"epoch": epoch, "stage": 1, "loss": loss}


def test_tensorboard_keeps_rows_and_takes_back_what_a_restart_tells_again(about: Callable[..., RunInfo]) -> None:
    with Sinks(["tensorboard"], about()) as told:
        for epoch, loss in ((1, 3.0), (2, 2.0), (3, 99.0)):
            told.row(row(epoch, loss))
    with Sinks(["tensorboard"], about(first_epoch=2)) as told:
        told.row(row(3, 1.0))
    events = EventAccumulator(str(about().folder / "run-1"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "stage"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_mlflow_goes_on_with_the_run_of_an_earlier_attempt(
    about: Callable[..., RunInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    for first, losses in ((0, (3.0, 2.0)), (2, (1.0,))):
        with Sinks(["mlflow"], about(first)) as told:
            for epoch, loss in enumerate(losses, first + 1):
                told.row(row(epoch, loss))
    client = MlflowClient()
    experiment = client.get_experiment_by_name("dearkd")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits, seed 3")
    assert run.data.params == {"seed": "3", "student.depth": "4"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]


class Bad:
    """A sink that fails at a given call."""

    calls = 0

    def __init__(self, run: RunInfo, at: str = "") -> None:
        self.at = at
        if at == "open":
            raise ConnectionError("no server")

    def row(self, metrics: Any) -> None:
        Bad.calls += 1
        if self.at == "row":
            raise OSError("disk full")

    def close(self) -> None:
        if self.at == "close":
            raise RuntimeError("gone")


@pytest.mark.parametrize(
    ("at", "calls", "said"), [("open", 0, "no server"), ("row", 1, "disk full"), ("close", 3, "gone")]
)
def test_a_sink_that_fails_is_named_once_and_left_alone(
    about: Callable[..., RunInfo],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: str,
    calls: int,
    said: str,
) -> None:
    good: list[dict[str, Any]] = []

    class Good(Bad):
        def row(self, metrics: Any) -> None:
            good.append(dict(metrics))

    monkeypatch.setattr(sinks, "KINDS", {"bad": lambda run: Bad(run, at), "good": Good})
    monkeypatch.setattr(Bad, "calls", 0)
    with caplog.at_level(logging.WARNING), Sinks(["bad", "good"], about()) as told:
        for epoch in (1, 2, 3):
            told.row(row(epoch, 1.0))
    assert Bad.calls == calls
    assert [given["epoch"] for given in good] == [1, 2, 3]
    assert [record.message.count(said) for record in caplog.records] == [1]
    assert "bad" in caplog.text


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_is_told_by_default_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.delenv("DEARKD_METRICS_SINKS", raising=False)
    if not installed:
        monkeypatch.setattr(sys, "path", [])
        monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
        importlib.invalidate_caches()
    assert Settings().metrics_sink_names == (["tensorboard"] if installed else [])


def test_the_setting_names_sinks_and_an_unknown_one_is_refused(
    about: Callable[..., RunInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEARKD_METRICS_SINKS", " tensorboard, mlflow ,")
    assert Settings().metrics_sink_names == ["tensorboard", "mlflow"]
    monkeypatch.setenv("DEARKD_METRICS_SINKS", "")
    assert Settings().metrics_sink_names == []
    with pytest.raises(InvalidInput, match="'tensorbord': there are mlflow, tensorboard, trackio, wandb"):
        Sinks(["tensorbord"], about())
