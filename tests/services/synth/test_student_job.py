"""A job that trains its own student, on a real Redis and real files: by one worker, by two, by one that dies."""

import os
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.errors import CorruptData, NotFound
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import TERMINAL, Job, dataset_of
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec
from dearkd.vision.shards import ShardDataset
from dearkd.work.attempt import Attempt
from dearkd.work.worker import drain, open_ledger
from dearkd_synth.service import student_unit
from dearkd_synth.service.job import ShardMaker
from dearkd_synth.service.student_unit import NAME, UNIT, evenly, of_each_class
from tests.services.synth.test_job import settings, store_teacher
from tests.support.programs import CONTEXT

__all__ = ["settings"]

pytestmark = pytest.mark.services

POSTED: dict[str, Any] = {
    "images_per_class": 6,
    "batch_size": 10,
    "shard_samples": 10,
    "phases": [{"resolution": 16, "iterations": 2}],
    "min_teacher_accuracy": 0,
    "weights": {"adaptive": 1.0},
    "adaptive_every": 2,
    "adaptive_iterations": 4,
    "parallelism": 2,
}
"""Three shards of ten images: 0 and 2 are made first, then the student, then 1."""


def submit(ledger: Ledger, small_teacher: Any, folder: Path) -> Job:
    teacher = store_teacher(ledger, small_teacher, folder)
    spec = SynthesisSpec.resolve(POSTED | {"teacher": teacher.id}, teacher.spec)
    return ledger.store.create_synthesis(spec, images=spec.num_samples)


def again(ledger: Ledger, job: Job) -> Job:
    """The same spec once more."""
    spec = SynthesisSpec.check(job.spec)
    return ledger.store.create_synthesis(spec, images=spec.num_samples)


def dataset(ledger: Ledger, job: Job) -> DatasetManifest:
    ended = ledger.store.get(job.id)
    assert ended.status == "succeeded", ended.error
    return datasets(ledger.store.storage).get(dataset_of(job.id))


def bytes_of(made: DatasetManifest) -> list[str]:
    assert made.quality is not None
    return [*(shard.sha256 for shard in made.shards), made.quality["adaptive_student"]["sha256"]]


def work(settings: Settings, job: str, dies: bool) -> None:
    """A worker process: drains until the job has ended. One that dies does so by SIGKILL in the student's training."""
    torch.set_num_threads(1)
    train = student_unit.train_adaptive_student  # type: ignore[attr-defined]

    def die(*args: Any, **kwargs: Any) -> Any:
        def on_step(done: int, loss: float) -> None:
            if done == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        return train(*args, **(kwargs | {"on_step": on_step}))

    if dies:
        student_unit.train_adaptive_student = die  # type: ignore[attr-defined]
    ledger = open_ledger(settings)
    with ShardMaker() as maker:
        while ledger.store.get(job).status not in TERMINAL:
            drain("synthesis", maker.perform, settings)
            time.sleep(0.05)


def start(settings: Settings, job: Job, *, dies: bool = False) -> BaseProcess:
    process = CONTEXT.Process(target=work, args=(settings, job.id, dies))
    process.start()
    return process


def test_its_dataset_is_the_same_from_one_worker_from_two_and_after_a_death_in_the_training(
    settings: Settings, small_teacher: Any, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    alone = submit(ledger, small_teacher, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ShardMaker() as maker:
            assert drain("synthesis", maker.perform, settings) == 5  # three shards, the student, the end
    finally:
        torch.set_num_threads(threads)
    expected = dataset(ledger, alone)
    assert len(set(bytes_of(expected))) == 4
    assert expected.quality is not None
    assert expected.quality["adaptive_student"]["trained_on_shards"] == [0, 2]
    log = ledger.log.read(alone.id)
    order = [log.index(f"unit {unit} begins") for unit in ("0", "2", UNIT, "1", "finish")]
    assert order == sorted(order)
    assert "it agrees with the teacher on" in log

    disturbed = again(ledger, alone)
    first = start(settings, disturbed, dies=True)
    first.join(300)
    assert first.exitcode == -signal.SIGKILL
    assert set(ledger.payloads(disturbed.id)) == {"0", "2"}
    assert ledger.store.get(disturbed.id).progress.done == 20
    assert not ledger.store.storage.exists(f"datasets/{dataset_of(disturbed.id)}/{NAME}")
    assert ledger.claim("synthesis", 60.0) is None, "its shards wait"
    ledger.redis.zadd("dearkd:leases", {f"{disturbed.id}#{UNIT}": 0})
    assert [taken.unit for taken, _ in ledger.reap(max_deaths=3)] == [UNIT]
    two = [start(settings, disturbed) for _ in range(2)]
    for process in two:
        process.join(300)
        assert process.exitcode == 0
    assert bytes_of(dataset(ledger, disturbed)) == bytes_of(expected)
    assert ledger.store.get(disturbed.id).progress.done == 30


@pytest.mark.parametrize("bound", ["images", "bytes"])
def test_it_sees_every_class_where_it_cannot_see_every_image(
    settings: Settings, small_teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """Of shards 0 and 2, each with two images of five classes, ten images: one of each class of each."""
    if bound == "images":
        monkeypatch.setattr(student_unit, "MAX_IMAGES", 10)
    else:
        monkeypatch.setattr(student_unit, "MAX_BYTES", 11 * 3 * 32 * 32 - 1)
    seen: list[Tensor] = []
    train = student_unit.train_adaptive_student  # type: ignore[attr-defined]

    def watch(network: Any, teacher: Any, spec: Any, images: Tensor, **options: Any) -> Any:
        seen.append(images.clone())
        return train(network, teacher, spec, images, **options)

    monkeypatch.setattr(student_unit, "train_adaptive_student", watch)
    ledger = open_ledger(settings)
    job = submit(ledger, small_teacher, tmp_path)
    with ShardMaker() as maker:
        drain("synthesis", maker.perform, settings)
    made = dataset(ledger, job)
    labels = []
    for index in (0, 2):
        path = tmp_path / made.shards[index].name
        ledger.store.storage.download(f"{made.prefix}/{path.name}", path)
        stored = ShardDataset([path], num_classes=5, in_chans=3)
        labels += [
            int(stored.labels[i])
            for i in range(len(stored))
            if any(torch.equal(image, stored[i][0]) for image in seen[0])
        ]
    assert len(seen[0]) == 10
    assert sorted(labels) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=60).map(np.array),
    count=st.integers(1, 70),
)
def test_samples_are_spread_over_the_classes(labels: np.ndarray, count: int) -> None:
    picked = of_each_class(labels, count).tolist()
    assert picked == sorted(set(picked))
    assert len(picked) <= count
    if count >= len(labels):
        assert len(picked) == len(labels)
        return
    classes = Counter(labels.tolist())
    of = Counter(labels[picked].tolist())
    for label, there in classes.items():
        fair = count // len(classes)
        assert min(fair, there) <= of[label] <= fair + 1


def test_shards_are_spread_where_there_are_more_than_images() -> None:
    assert evenly(range(0, 100, 10), 3) == [0, 30, 60]
    assert evenly(range(0, 30, 10), 9) == [0, 10, 20]


def test_a_cancel_in_the_training_ends_the_job_and_a_retry_goes_on_there(
    settings: Settings, small_teacher: Any, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    job = submit(ledger, small_teacher, tmp_path)
    begun: list[str] = []
    with ShardMaker() as maker:

        def perform(attempt: Attempt) -> None:
            begun.append(attempt.unit)
            if begun.count(UNIT) == 1 and attempt.unit == UNIT:
                ledger.store.cancel(job.id)
            maker.perform(attempt)

        drain("synthesis", perform, settings)
        assert (ledger.store.get(job.id).status, begun) == ("canceled", ["0", "2", UNIT])
        assert not ledger.store.storage.exists(f"datasets/{dataset_of(job.id)}/{NAME}")
        ledger.store.retry(job.id)
        drain("synthesis", perform, settings)
    assert begun[3:] == [UNIT, "1", "finish"]
    assert dataset(ledger, job).num_samples == 30


def test_a_student_that_lies_in_storage_is_adopted_and_a_damaged_one_named(
    settings: Settings, small_teacher: Any, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    job = submit(ledger, small_teacher, tmp_path)
    with ShardMaker() as maker:
        drain("synthesis", maker.perform, settings)
        made = dataset(ledger, job)
        other = again(ledger, job)
        key = f"datasets/{dataset_of(other.id)}/{NAME}"
        storage.put(key, storage.read(f"{made.prefix}/{NAME}")[:-1])
        drain("synthesis", maker.perform, settings)
        failed = ledger.store.get(other.id)
        assert failed.error is not None
        assert (failed.status, failed.error.code) == ("failed", CorruptData.default_code)
        assert f"{NAME} holds no student" in failed.error.message
        storage.put(key, storage.read(f"{made.prefix}/{NAME}"))
        ledger.store.retry(other.id)
        drain("synthesis", maker.perform, settings)
    assert bytes_of(dataset(ledger, other)) == bytes_of(made)
    assert "the student lies in storage already" in ledger.log.read(other.id)


def test_shards_take_no_student_that_is_not_the_one_that_was_marked(
    settings: Settings, small_teacher: Any, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    job = submit(ledger, small_teacher, tmp_path)
    key = f"datasets/{dataset_of(job.id)}/{NAME}"
    with ShardMaker() as maker:

        def perform(attempt: Attempt) -> None:
            if attempt.unit == "1":
                storage.put(key, storage.read(key) + b"x")
            maker.perform(attempt)

        drain("synthesis", perform, settings)
    error = ledger.store.get(job.id).error
    assert error is not None
    assert (error.code, "sha256" in error.message) == (CorruptData.default_code, True)
    with pytest.raises(NotFound):
        datasets(storage).get(dataset_of(job.id))
