"""A run's checkpoints become models while it goes on, by a real API and the real command: the same answers, and no
trace of it in the run."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dearkd.answers import Checkpoint
from dearkd.cli import main
from dearkd.data.manifests import DatasetManifest
from dearkd.identifiers import new_id
from dearkd.jobs.model import Job
from dearkd.settings import Settings
from dearkd.specs import TrainingSpec
from dearkd.work.worker import drain, open_ledger
from dearkd_trainer.model.export import load_model
from dearkd_trainer.service.job import perform
from dearkd_trainer.train.trainer import DearKDTrainer
from tests.services.trainer.test_windowed_jobs import PLAIN, dataset, settings, weights
from tests.support.bars import SIDE
from tests.support.services import Api, serving

__all__ = ["dataset", "settings"]

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

IMAGES = torch.randn(8, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
SPEC: dict[str, Any] = {
    **PLAIN,
    "stage_one": {**PLAIN["stage_one"], "epochs": 2},
    "stage_two": {"epochs": 2},
    "checkpoint_every": 1,
}
Look = Callable[[DearKDTrainer], None]


@pytest.fixture
def api(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with serving(settings, tmp_path) as found:
        monkeypatch.setenv("DEARKD_URL", found.url)
        monkeypatch.setenv("DEARKD_CACHE_DIR", str(tmp_path / "client"))
        yield found


def train(api: Api, dataset: DatasetManifest, monkeypatch: pytest.MonkeyPatch, look: Look, **posted: Any) -> Job:
    """A run in this process, which is looked at after each checkpoint, before it goes on."""
    save = DearKDTrainer.save

    def save_and_look(self: DearKDTrainer) -> None:
        save(self)
        look(self)

    store = open_ledger(api.settings).store
    spec = TrainingSpec.resolve({"dataset": dataset.id, **SPEC, **posted}, dataset.facts, None)
    job = store.create_training(spec, epochs=spec.epochs, waits_for=None)
    with monkeypatch.context() as patch:
        patch.setattr(DearKDTrainer, "save", save_and_look)
        settings = api.settings.model_copy(update={"cache_bytes": 20 * 2**20})
        assert drain("training", perform, settings) == 1
    return store.get(job.id)


def dearkd(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[Any, Any]:
    """The exit status of a command, and what it says in JSON."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--json"])
    return ended.value.code, json.loads(capsys.readouterr().out)


def running(api: Api) -> str:
    (run,) = api.http.get("/v1/training-runs", params={"status": "running"}).json()["data"]
    return str(run["id"])


def answers(network: torch.nn.Module) -> torch.Tensor:
    was = network.training
    with torch.inference_mode():
        found: torch.Tensor = network.eval()(IMAGES)
    network.train(was)
    return found


@pytest.mark.parametrize("half_life", [None, 1.0], ids=["plain", "averaged"])
def test_every_checkpoint_is_exported_with_the_answers_of_its_epoch(
    api: Api,
    dataset: DatasetManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    half_life: float | None,
) -> None:
    seen: list[tuple[int, int]] = []

    def look(trainer: DearKDTrainer) -> None:
        run, folder = running(api), tmp_path / f"export-{len(seen)}"
        listed = api.http.get(f"/v1/training-runs/{run}/checkpoints").json()["data"]
        newest = listed[0]
        seen.append((newest["epoch"], newest["step"]))
        assert (newest["epoch"], newest["step"]) == (trainer.epoch, trainer.step)
        whole = trainer.step == trainer.epoch * trainer.steps_per_epoch
        assert newest["metrics"] == (json.loads(json.dumps(trainer.history[-1])) if whole else None)
        code, told = dearkd(capsys, "export", run, folder, "--to", "safetensors")
        assert code == 0, told
        assert told["checkpoint"] == {name: newest[name] for name in ("id", "epoch", "stage", "step")}
        config = json.loads((folder / "config.json").read_text())
        assert config["label_names"] == [c.name for c in dataset.classes]
        exported = answers(load_model(config, folder / "model.safetensors"))
        assert torch.equal(exported, answers(trainer.evaluated))
        if half_life is not None and trainer.epoch > 1:
            assert not torch.equal(exported, answers(trainer.student)), "the average is what the run would leave"

    optimizer = {**PLAIN["optimizer"], "model_ema_half_life": half_life}
    job = train(api, dataset, monkeypatch, look, optimizer=optimizer, keep_checkpoints=3, checkpoint_seconds=1e-9)
    steps = [step for _, step in seen]
    assert steps == list(range(1, max(steps) + 1)), "after every step, and so in the midst of epochs"
    last = load_file(tmp_path / f"export-{len(seen) - 1}" / "model.safetensors")
    (tmp_path / "left.safetensors").write_bytes(weights(api.settings, job))
    left = load_file(tmp_path / "left.safetensors")
    assert last.keys() == left.keys()
    assert all(torch.equal(last[name], left[name]) for name in left)
    undisturbed = train(api, dataset, monkeypatch, lambda _: None, optimizer=optimizer)
    assert weights(api.settings, job) == weights(api.settings, undisturbed)


def test_a_checkpoint_of_an_epoch_is_had_as_long_as_it_is_kept_and_evaluates_as_it_did_then(
    api: Api,
    dataset: DatasetManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = train(api, dataset, monkeypatch, lambda _: None, keep_checkpoints=2, eval_dataset=dataset.id)
    assert job.status == "succeeded", job.error
    listed = api.http.get(f"/v1/training-runs/{job.id}/checkpoints").json()["data"]
    assert [(c["epoch"], c["stage"]) for c in listed] == [(4, 2), (3, 2)]
    rows = {row["epoch"]: row for row in api.http.get(f"/v1/training-runs/{job.id}/metrics").json()["data"]}
    for checkpoint in listed:
        row = rows[checkpoint["epoch"]]
        assert checkpoint["metrics"].items() <= row.items()
        folder = tmp_path / f"epoch-{checkpoint['epoch']}"
        code, told = dearkd(capsys, "export", job.id, folder, "--to", "hf", "--epoch", str(checkpoint["epoch"]))
        assert (code, told["checkpoint"]["id"]) == (0, checkpoint["id"])
        code, found = dearkd(capsys, "evaluate", folder, dataset.id)
        assert code == 0
        assert (found["top1"], found["loss"]) == pytest.approx((row["eval_top1"], row["eval_loss"]), abs=1e-6)
    assert dearkd(capsys, "evaluate", job.id, dataset.id)[1]["top1"] == rows[4]["eval_top1"]
    code, told = dearkd(capsys, "export", job.id, tmp_path / "gone", "--to", "safetensors", "--epoch", "1")
    assert (code, told["error"]["code"]) == (1, "not_found")
    assert "but of 4, 3" in told["error"]["message"]
    assert not (tmp_path / "gone").exists()


def test_one_that_is_deleted_while_it_is_fetched_is_looked_up_anew_or_named(
    api: Api,
    dataset: DatasetManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dearkd_trainer.commands import checkpoints

    choose = checkpoints._choose
    stale: list[Any] = []

    def look(trainer: DearKDTrainer) -> None:
        run = running(api)
        listed = api.http.get(f"/v1/training-runs/{run}/checkpoints").json()["data"]
        assert len(listed) == 1, "one is kept"
        if stale:
            shutil.rmtree(tmp_path / "client", ignore_errors=True)  # what was fetched before is had without the API
            # As if the list had been read before the run made its newest.
            first = iter([stale[-1]])
            with monkeypatch.context() as patch:
                patch.setattr(checkpoints, "_choose", lambda *args: next(first, None) or choose(*args))
                code, told = dearkd(capsys, "export", run, tmp_path / f"new-{trainer.epoch}", "--to", "safetensors")
                assert (code, told["checkpoint"]["epoch"]) == (0, trainer.epoch)
                patch.setattr(checkpoints, "_choose", lambda *_: stale[-1])
                code, told = dearkd(capsys, "export", run, tmp_path / "old", "--to", "safetensors", "--epoch", "1")
                assert (code, told["error"]["code"]) == (1, "not_found")
                assert "has deleted the checkpoint before it was fetched" in told["error"]["message"]
                assert "keep_checkpoints" in told["error"]["message"]
                assert not (tmp_path / "old").exists()
        stale.append(Checkpoint.model_validate(listed[0]))

    assert train(api, dataset, monkeypatch, look).status == "succeeded"
    assert len(stale) == 4


def test_a_run_without_a_checkpoint_and_what_is_no_run_are_named(
    api: Api, dataset: DatasetManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = TrainingSpec.resolve({"dataset": dataset.id, **SPEC}, dataset.facts, None)
    waiting = api.store.create_training(spec, epochs=spec.epochs, waits_for=None).id
    for run, says in ((waiting, "has no checkpoint yet"), (new_id("run"), "there is no job")):
        code, told = dearkd(capsys, "export", run, tmp_path / "none", "--to", "safetensors")
        assert (code, told["error"]["code"], says in told["error"]["message"]) == (1, "not_found", True)
    code, _ = dearkd(capsys, "export", new_id("mdl"), tmp_path / "none", "--to", "safetensors", "--epoch", "3")
    assert code == 2
