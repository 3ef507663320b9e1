"""Runs of the service on a dataset that is larger than its cache, on a real Redis and real files."""

import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dearkd.data.manifests import DatasetManifest, count_classes, datasets
from dearkd.data.shard_files import Sample, write_shard
from dearkd.identifiers import new_id
from dearkd.jobs.model import Job
from dearkd.local.embedded_redis import embedded_redis
from dearkd.settings import Settings
from dearkd.specs import TrainingSpec
from dearkd.storage import file_cache
from dearkd.storage.objects import Storage
from dearkd.vision.images import encode
from dearkd.work.worker import drain, open_ledger
from dearkd_trainer.service.data import PLACES
from dearkd_trainer.service.inputs import RunInputs
from dearkd_trainer.service.job import perform
from dearkd_trainer.service.process_group import ProcessGroup
from tests.services.trainer.test_process_group import Diary
from tests.support.bars import CLASSES, SIDE, TASK, bars

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

BOUND = 2**20
"""Less than which the setting may not be."""
PLAIN: dict[str, Any] = {
    "batch_size": 12,
    "holdout": 0.1,
    "workers": 1,
    "eval_every": 1,
    "student": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mhca_blocks": 1, "mhca_dropout": 0.0},
    "stage_one": {"epochs": 1, "distillation": "none", "weights": {"hidden": 0.0}},
    "stage_two": {"epochs": 1},
    "optimizer": {"warmup_epochs": 1},
}


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    folder = tmp_path / "redis"
    folder.mkdir()
    handler = signal.getsignal(signal.SIGTERM)  # a worker's loop puts its own in place
    with embedded_redis(folder) as url:
        yield Settings(
            redis_url=url, storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "cache", cache_bytes=BOUND
        )
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetManifest:
    """Six shards of about 190 kB, most of which nobody reads: five leave room for a run's two checkpoints."""
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}/storage"))
    identifier = new_id("ds")
    samples = [
        Sample(f"{n:04d}", encode(image, "png"), "png", label, {}, {"ballast": os.urandom(14_400)})
        for n, (image, label) in enumerate(bars(60))
    ]
    shards = []
    for number in range(6):
        path = tmp_path / f"train-{number:06d}.tar"
        shards.append(write_shard(path, samples[10 * number : 10 * number + 10]))
        storage.put(f"datasets/{identifier}/{path.name}", path)
    manifest = DatasetManifest(
        id=identifier,
        created_at=datetime.now(UTC),
        num_samples=60,
        num_classes=CLASSES,
        image_size=SIDE,
        in_chans=1,
        classes=count_classes(shards, None, CLASSES),
        shards=shards,
        prefix=f"datasets/{identifier}",
    )
    datasets(storage).create(manifest)
    return manifest


def run(settings: Settings, dataset: DatasetManifest, **posted: Any) -> Job:
    ledger = open_ledger(settings)
    spec = TrainingSpec.resolve({"dataset": dataset.id, **PLAIN, **posted}, dataset.facts, None)
    job = ledger.store.create_training(spec, epochs=spec.epochs, waits_for=None)
    assert drain("training", perform, settings) == 1
    return ledger.store.get(job.id)


def weights(settings: Settings, job: Job) -> bytes:
    assert job.status == "succeeded", job.error
    assert job.result is not None
    return open_ledger(settings).store.storage.read(f"models/{job.result['model']}/model.safetensors")


def test_what_does_not_fit_is_refused_with_a_remedy_before_anything_is_fetched(
    settings: Settings, dataset: DatasetManifest
) -> None:
    whole = sum(shard.bytes for shard in dataset.shards)
    for posted, says in (
        ({}, f"have {whole} bytes, .* DEARKD_CACHE_BYTES is {BOUND} .*: raise that, or set shuffle_shards"),
        ({"shuffle_shards": 3}, f"3, for which 6 shards .* {whole} bytes, .* {BOUND} on this worker: set fewer"),
        ({"shuffle_shards": 2, "processes": 2}, f"2, for which 6 shards .* {whole} bytes"),
    ):
        job = run(settings, dataset, **posted)
        assert job.status == "failed"
        assert job.error is not None
        assert (job.error.code, job.error.retryable) == ("invalid_input", False)
        assert re.search(says, job.error.message), job.error.message
    assert not list(settings.cache_dir.rglob("*.tar"))


def test_a_run_on_a_small_cache_stays_within_it_and_makes_the_model_of_one_on_a_large_cache(
    settings: Settings, dataset: DatasetManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    verify = file_cache.verify_copy

    def measure(*args: Any, **kwargs: Any) -> None:
        sizes.append(sum(path.lstat().st_size for path in settings.cache_dir.rglob("*") if path.is_file()))
        verify(*args, **kwargs)

    monkeypatch.setattr(file_cache, "verify_copy", measure)
    made = weights(settings, run(settings, dataset, shuffle_shards=1))
    # For pixels, for labels, and for two epochs.
    assert len(sizes) > 12
    assert max(sizes) <= BOUND
    monkeypatch.undo()
    large = settings.model_copy(update={"cache_bytes": 2**30, "cache_dir": tmp_path / "large"})
    assert weights(large, run(large, dataset, shuffle_shards=1)) == made


def test_processes_read_through_one_cache(settings: Settings, dataset: DatasetManifest, tmp_path: Path) -> None:
    spec = TrainingSpec.resolve(
        {"dataset": dataset.id, **PLAIN, "processes": 2, "shuffle_shards": 2}, dataset.facts, None
    )

    inputs = RunInputs(
        spec=spec,
        directory=tmp_path / "together",
        shards=dataset,
        eval_shards=dataset,
        settings=settings.model_dump(mode="json", include=PLACES),
        task=TASK.at(spec.student.image_size).model_copy(update={"class_names": ["low", "middle", "high"]}),
        teacher=None,
        teacher_weights=None,
    )
    inputs.directory.mkdir()
    with ProcessGroup(inputs, device="cpu", threads=1, check=lambda: None, note=print) as group:
        found = group.run(Diary())
    files = [tmp_path / shard.name for shard in dataset.shards]
    changes = {"spec": spec.model_copy(update={"processes": 1}), "shards": files, "eval_shards": files}
    one = inputs.model_copy(update={**changes, "directory": tmp_path / "alone"})
    expected = one.trainer(
        torch.device("cpu"), on_step=lambda *_: None, on_epoch=lambda _: None, on_checkpoint=lambda _: None
    ).fit()
    assert found.evaluation is not None
    assert expected.evaluation is not None
    assert found.evaluation.confusion == expected.evaluation.confusion
    weights = load_file(expected.weights)
    for name, tensor in load_file(found.weights).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)
