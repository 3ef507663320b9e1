"""The service around the trainer, on a real Redis and real files: what a finished run says of itself."""

import hashlib
import json
import math
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dearkd.data.manifests import DatasetManifest, count_classes, datasets
from dearkd.data.shard_files import Sample, write_shard
from dearkd.identifiers import new_id
from dearkd.jobs import measures
from dearkd.jobs.model import Job
from dearkd.jobs.reaper import Reaper
from dearkd.local.embedded_redis import embedded_redis
from dearkd.settings import Settings
from dearkd.specs import TrainingSpec
from dearkd.storage.catalog import models
from dearkd.storage.objects import Storage
from dearkd.vision.images import encode
from dearkd.work.worker import drain, open_ledger
from dearkd_trainer.service.job import perform
from dearkd_trainer.train import trainer as training
from dearkd_trainer.train.failures import LoaderLost
from tests.support.bars import CLASSES, SIDE, bars
from tests.support.report_pages import read_page, require_alone

pytestmark = pytest.mark.services


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    folder = tmp_path / "redis"
    folder.mkdir()
    handler = signal.getsignal(signal.SIGTERM)  # a worker's loop puts its own in place
    with embedded_redis(folder) as url:
        yield Settings(redis_url=url, storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "cache")
    signal.signal(signal.SIGTERM, handler)


def store_bars(storage: Storage, folder: Path) -> DatasetManifest:
    path = folder / "train-000000.tar"
    shard = write_shard(path, (Sample(f"{n:04d}", encode(x, "png"), "png", y, {}) for n, (x, y) in enumerate(bars(24))))
    identifier = new_id("ds")
    storage.put(f"datasets/{identifier}/{shard.name}", path)
    manifest = DatasetManifest(
        id=identifier,
        created_at=datetime.now(UTC),
        num_samples=24,
        num_classes=CLASSES,
        image_size=SIDE,
        in_chans=1,
        classes=count_classes([shard], None, CLASSES),
        shards=[shard],
        prefix=f"datasets/{identifier}",
    )
    datasets(storage).create(manifest)
    return manifest


def finished_run(settings: Settings, tmp_path: Path, attempts: int = 1) -> Job:
    """Without a teacher, of three epochs of two steps."""
    ledger = open_ledger(settings)
    dataset = store_bars(ledger.store.storage, tmp_path)
    posted = {
        "dataset": dataset.id,
        "eval_dataset": dataset.id,
        "eval_every": 100,
        "batch_size": 12,
        "holdout": 0.0,
        "workers": 0,
        "student": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mhca_blocks": 1},
        "stage_one": {"epochs": 1, "distillation": "none", "weights": {"hidden": 0.0}},
        "stage_two": {"epochs": 2},
        "optimizer": {"warmup_epochs": 1},
    }
    spec = TrainingSpec.resolve(posted, dataset.facts, None)
    job = ledger.store.create_training(spec, epochs=spec.epochs, waits_for=None)
    for _ in range(attempts):
        assert drain("training", perform, settings) == 1
        Reaper(ledger, settings).step()
    ended = ledger.store.get(job.id)
    assert ended.status == "succeeded", ended.error
    return ended


def test_a_finished_run_shows_its_last_epoch_with_its_evaluation(settings: Settings, tmp_path: Path) -> None:
    ended = finished_run(settings, tmp_path)
    (*_, last), _ = open_ledger(settings).store.rows(ended.id, limit=10)
    assert last["epoch"] == 3
    assert "eval_top1" in last
    assert ended.metrics == {name: value for name, value in last.items() if name != "id"} | {"step": 6, "steps": 6}
    assert (ended.progress.done, ended.progress.total) == (3, 3)
    measured = {
        name.decode(): float(value) for name, value in open_ledger(settings).redis.hgetall(measures.KEY).items()
    }
    assert measured.pop(measures.STEP_SECONDS.total) > 0
    assert measured.pop(measures.TRAINED_IMAGES.field()) == 3 * 24
    assert sum(measured.values()) == 6, "the steps, in some buckets"


def test_what_a_run_found_are_files_of_its_model(settings: Settings, tmp_path: Path) -> None:
    ended = finished_run(settings, tmp_path)
    store = open_ledger(settings).store
    (*_, last), _ = store.rows(ended.id, limit=10)
    assert ended.result is not None
    model = models(store.storage).get(ended.result["model"])
    assert {file.name for file in model.files} == {
        *("model.safetensors", "config.json", "README.md"),
        *("metrics.jsonl", "evaluation.json", "attention_distance.png", "report.html"),
    }

    def content(name: str) -> bytes:
        return store.storage.read(f"models/{model.id}/{name}")

    for file in model.files:
        assert hashlib.sha256(content(file.name)).hexdigest() == file.sha256
    found = json.loads(content("evaluation.json"), parse_constant=no_json)
    assert found["dataset"] == ended.spec["eval_dataset"]
    assert (found["samples"], found["top1"]) == (24, last["eval_top1"])
    assert found["expected_calibration_error"] == last["eval_calibration_error"]
    assert [(row["name"], row["samples"]) for row in found["per_class"]] == [(str(n), 8) for n in range(CLASSES)]
    assert [row["accuracy"] for row in found["per_class"]] == [found["confusion"][n][n] for n in range(CLASSES)]
    assert found["attention_distance"]["layers"] == [last["attention_distance_1"]]
    assert content("attention_distance.png").startswith(b"\x89PNG")
    assert content("metrics.jsonl") == store.storage.read(f"runs/{ended.id}/metrics.jsonl")
    assert f"`{ended.id}`" in content("README.md").decode()
    report = read_page(content("report.html").decode())
    require_alone(report)
    assert f"dearkd model pull {model.id} student" in report.text
    assert f"top-1\n{last['eval_top1']:.2%}\n" in report.text
    assert f"run\n{ended.id}\n" in report.text


def test_a_report_that_cannot_be_written_is_noted_and_the_model_is_stored(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> str:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("dearkd_trainer.report.contents.run_page", fail)
    ended = finished_run(settings, tmp_path)
    ledger = open_ledger(settings)
    assert ended.result is not None
    files = {file.name for file in models(ledger.store.storage).get(ended.result["model"]).files}
    assert "report.html" not in files
    assert {"model.safetensors", "README.md", "evaluation.json"} <= files
    assert "report.html could not be written" in ledger.log.read(ended.id)


def test_a_run_that_lost_its_loader_is_tried_again_as_after_a_death(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, lost = training.DearKDTrainer.fit, [LoaderLost("DataLoader worker (pid 7) is killed by signal: Killed.")]

    def fit_at_the_second_attempt(self: training.DearKDTrainer) -> training.TrainingResult:
        if lost:
            raise lost.pop()
        return fit(self)

    monkeypatch.setattr(training.DearKDTrainer, "fit", fit_at_the_second_attempt)
    ended = finished_run(settings, tmp_path, attempts=2)
    assert ended.attempt == 2
    log = open_ledger(settings).log.read(ended.id)
    assert "lost a process that read its images: DataLoader worker (pid 7) is killed by signal" in log


def no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_what_is_no_number_is_told_and_stored_as_null(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training.evaluate  # type: ignore[attr-defined]
    monkeypatch.setattr(training, "evaluate", lambda *args, **kwargs: replace(whole(*args, **kwargs), loss=math.nan))
    ended = finished_run(settings, tmp_path)
    store = open_ledger(settings).store
    (*_, last), _ = store.rows(ended.id, limit=10)
    assert last["eval_loss"] is None
    assert ended.metrics["eval_loss"] is None
    lines = store.storage.read(f"runs/{ended.id}/metrics.jsonl").decode().splitlines()
    assert [json.loads(line, parse_constant=no_json).get("eval_loss", 0) for line in lines] == [0, 0, None]
