"""The service around the trainer: turns a run's record into a call of the library, its result into a stored model.

Checkpoints go to `runs/{id}/checkpoints/` as soon as they are committed locally, so that another worker can go on; the
model goes to `models/{id}/`, its manifest last.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch

from dearkd import tracing
from dearkd.data.manifests import DatasetManifest
from dearkd.errors import Unavailable
from dearkd.jobs.measures import STEP_SECONDS, TRAINED_IMAGES
from dearkd.jobs.model import Job, model_of, now
from dearkd.settings import Settings
from dearkd.specs import Task, TrainingSpec
from dearkd.storage.catalog import (
    Accuracy,
    Model,
    StoredFile,
    Teacher,
    describe_file,
    models,
    teachers,
)
from dearkd.storage.checkpoints import StoredCheckpoint
from dearkd.storage.objects import AlreadyExists, Storage
from dearkd.vision.devices import choose_device
from dearkd.work.attempt import Attempt, Died, HandBack
from dearkd.work.worker import drain as drain_units
from dearkd_trainer.evaluate.report import METRICS, json_lines
from dearkd_trainer.model.export import REPORT
from dearkd_trainer.record.facts import RunFacts
from dearkd_trainer.record.meter import json_row
from dearkd_trainer.service.checkpoints import store_checkpoint
from dearkd_trainer.service.data import PLACES, Source, fetch_datasets, manifests_of, open_shards, pixel_statistics
from dearkd_trainer.service.inputs import FILES, RunInputs, StoredInputs
from dearkd_trainer.service.process_group import ProcessGroup
from dearkd_trainer.service.ray_group import RayGroup, require_ray
from dearkd_trainer.service.sinks import RunInfo, Sinks
from dearkd_trainer.train.failures import LoaderLost
from dearkd_trainer.train.trainer import Metrics, TrainingResult


def drain(job: str) -> None:
    """The rq task: perform training runs until none is left; `job` is only the one that woke the worker."""
    settings = Settings()
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    drain_units("training", perform, settings)


def perform(attempt: Attempt) -> None:
    """Perform a run, from its last checkpoint to its model. Whatever it raises ends the attempt or fails the run."""
    spec = attempt.job.training_spec
    storage = attempt.storage
    if spec.engine == "ray":
        require_ray(attempt.settings)
    manifest, evaluated = manifests_of(storage, spec)
    teacher = teachers(storage).get(spec.teacher) if spec.teacher else None
    shards: tuple[Source, Source | None] = (manifest, evaluated)
    if spec.engine == "local":
        with tracing.span("fetch datasets"):
            shards = fetch_datasets(storage, attempt.cache, spec, manifest, evaluated, attempt.check)
    in_chans = cast(Literal[1, 3], manifest.in_chans if teacher is None else teacher.in_chans)
    for role, data in (("dataset", manifest), ("eval_dataset", evaluated)):
        for line in data.conversions(in_chans) if data is not None else ():
            attempt.note(f"{role}: {line}")
    if teacher is not None:
        mean, std = teacher.mean, teacher.std
    else:
        images = open_shards(
            shards[0], attempt.settings, num_classes=manifest.num_classes, in_chans=in_chans, check=attempt.check
        )
        mean, std = pixel_statistics(images, attempt.check)
    inputs = StoredInputs(
        run=attempt.job.id,
        spec=spec,
        task=Task.stored(
            {
                "num_classes": manifest.num_classes,
                "in_chans": in_chans,
                "image_size": spec.student.image_size,
                "mean": mean,
                "std": std,
                "class_names": [c.name for c in manifest.classes],
            }
        ),
        settings=attempt.settings.model_dump(mode="json", include=PLACES),
        about=facts_of(attempt.job, manifest, teacher),
    )
    with attempt.cache.scratch("run") as directory:
        placed, stored = inputs.fetch(storage, attempt.cache, shards, directory, attempt.note)
        reporter = RunReporter(attempt, spec, stored)
        try:
            with tracing.span("train"):
                if spec.engine == "ray":
                    result = train_in_cluster(attempt, inputs, directory, reporter)
                elif spec.processes == 1:
                    result = train_here(placed, reporter)
                else:
                    result = train_in_group(attempt, placed, reporter)
        finally:
            reporter.sinks.close()
        with tracing.span("store model"):
            attempt.publish(lambda: publish(attempt, spec, manifest, in_chans, result))
    attempt.stop_reporting()
    attempt.publish(lambda: attempt.ledger.complete(attempt.claim, {"model": model_of(attempt.job.id)}))


def facts_of(job: Job, dataset: DatasetManifest, teacher: Teacher | None) -> RunFacts:
    """The surroundings of a run, for its model's card and report."""
    data = {"name": dataset.name} if dataset.name else {}
    if dataset.job is not None:
        data["made by"] = dataset.job
    figures = (dataset.quality or {}).items()
    quality: dict[str, float | None] = {name: value for name, value in figures if isinstance(value, int | float)}
    about = {}
    if teacher is not None:
        about = {"id": teacher.id, "parameters": f"{teacher.parameters:,}", "weights": f"sha256 {teacher.sha256}"}
    return RunFacts(
        name=job.spec.get("name") or job.id,
        model=model_of(job.id),
        run=job.id,
        dataset=dataset.id,
        synthetic=dataset.spec is not None,
        data=data,
        quality=quality,
        teacher=about,
    )


def train_here(inputs: RunInputs, reporter: "RunReporter") -> TrainingResult:
    """Run the training in this process, which stores a last checkpoint if it has to hand the work back."""

    def on_step(step: int, steps: int) -> None:
        try:
            reporter.on_step(step, steps)
        except HandBack:
            trainer.save()
            raise

    trainer = inputs.trainer(
        choose_device(),
        on_step=on_step,
        on_epoch=reporter.on_epoch,
        on_checkpoint=reporter.on_checkpoint,
        check=reporter.attempt.check,
    )
    reporter.begin(trainer.history, trainer.step, len(trainer.train_indices))
    try:
        return trainer.fit()
    except LoaderLost as error:
        raise Died(f"lost a process that read its images: {error}") from error


def train_in_group(attempt: Attempt, inputs: RunInputs, reporter: "RunReporter") -> TrainingResult:
    """Run the training in several processes, which share the CPU threads that this one would have."""
    threads = max(1, torch.get_num_threads() // inputs.spec.processes)
    device = cast(Literal["cpu", "cuda"], choose_device().type)
    with ProcessGroup(inputs, device=device, threads=threads, check=attempt.check, note=attempt.note) as group:
        return group.run(reporter)


def train_in_cluster(
    attempt: Attempt, inputs: StoredInputs, directory: Path, reporter: "RunReporter"
) -> TrainingResult:
    """Run the training on a Ray cluster."""
    with RayGroup(inputs, directory, attempt.settings, check=attempt.check, note=attempt.note) as group:
        return group.run(reporter)


class RunReporter:
    """Passes on the trainer's reports: progress and cancel at every step, rows at every epoch, checkpoints at once."""

    def __init__(self, attempt: Attempt, spec: TrainingSpec, stored: StoredCheckpoint) -> None:
        self.attempt = attempt
        self.spec = spec
        self._stored = stored
        self._rows: list[Metrics] = []
        self._behind = False
        self._steps: dict[str, int] = {}
        self._step = 0
        self._ended_epoch = False
        self._first_epoch = 0
        self._images = 0
        """Images of an epoch."""
        self._began = self._stepped = time.monotonic()
        self._epoch_began = time.time_ns()
        self.sinks = Sinks([], RunInfo(attempt.job.id, attempt.job.id, {}, attempt.settings.metrics_dir))

    def begin(self, history: list[Metrics], step: int, images: int) -> None:
        """Start from the rows and the step of the checkpoint: later steps are done again, and reported again."""
        self._rows = list(history)
        self._step = step
        self._images = images
        self._first_epoch = len(history)
        self._began = time.monotonic()
        job, settings = self.attempt.job, self.attempt.settings
        run = RunInfo(job.id, self.spec.name or job.id, job.published_spec, settings.metrics_dir, len(history))
        self.sinks = Sinks(settings.metrics_sink_names, run)
        self.attempt.wait_for(None)
        self.attempt.publish(self._set_rows)
        if history:
            self._report(len(history))  # of a run that only has its model to store nothing else will
        if step:
            self.attempt.note(f"goes on after epoch {len(history)}, step {step}, from its last checkpoint")
        self._stepped, self._epoch_began = time.monotonic(), time.time_ns()

    def on_wait(self, what: str | None) -> None:
        """Say in record and log what the run waits for before it begins, such as room in a cluster; None: no more."""
        self.attempt.wait_for(what)
        if what is not None:
            self.attempt.note(f"waits for {what}")

    def on_step(self, step: int, steps: int) -> None:
        self._step, self._ended_epoch = step, False
        self.attempt.check()
        began, self._stepped = self._stepped, time.monotonic()
        self.attempt.measures.observe(STEP_SECONDS, self._stepped - began)
        # Batches of an epoch differ in size by at most one, the larger ones first.
        batches = steps // self.spec.epochs
        size, larger = divmod(self._images, batches)
        self.attempt.measures.count(TRAINED_IMAGES, by=size + ((step - 1) % batches < larger))
        self._steps = {"step": step, "steps": steps}
        self._report(self.spec.epochs * step / steps)

    def _report(self, epochs: float) -> None:
        """Report the latest row, so many epochs after the run's beginning."""
        rate = (epochs - self._first_epoch) / max(1e-9, time.monotonic() - self._began)
        latest: dict[str, Any] = json_row(self._rows[-1]) if self._rows else {}
        stage = 1 if epochs <= self.spec.stage_one.epochs and self.spec.stage_one.epochs else 2
        self.attempt.progress(int(epochs), rate or None, {**latest, "stage": stage, **self._steps})

    def on_epoch(self, row: Metrics) -> None:
        about = {"dearkd.epoch": int(row["epoch"]), "dearkd.stage": int(row["stage"])}
        tracing.span_since(self._epoch_began, "train epoch", about)
        self._rows.append(row)
        self._ended_epoch = True
        self._report(len(self._rows))  # at once: no step comes after the last epoch
        self.sinks.row(row)
        try:
            if self._behind:
                self._set_rows()
            else:
                self.attempt.ledger.add_row(self.attempt.claim, json_row(row))
            self._behind = False
        except Unavailable:
            self._behind = True  # the run goes on; its rows are written anew once Redis is back
        self._stepped, self._epoch_began = time.monotonic(), time.time_ns()

    def _set_rows(self) -> None:
        self.attempt.ledger.set_rows(self.attempt.job.id, [json_row(row) for row in self._rows])

    def on_checkpoint(self, path: Path) -> None:
        """Store the checkpoint and the rows up to it under the run, even if this process then has to end.

        Raises:
            HandBack: if this process has to end; after storing, or after failing to.
        """
        about = self._about_checkpoint()
        with tracing.span("store checkpoint"):
            try:
                self.attempt.publish(lambda: self._store(path.parent, about))
            except HandBack:
                try:
                    self.attempt.publish_last(lambda: self._store(path.parent, about))
                except Unavailable as error:
                    self.attempt.note(f"the last checkpoint is lost: {error.message}")
                raise
        self._stepped = time.monotonic()
        if self._steps and self._steps["step"] * self.spec.epochs == len(self._rows) * self._steps["steps"]:
            self._epoch_began = time.time_ns()  # it was stored between two epochs

    def _about_checkpoint(self) -> dict[str, Any]:
        epoch = len(self._rows)
        row = self._rows[-1] if self._ended_epoch else None
        stage = row["stage"] if row is not None else 1 if epoch < self.spec.stage_one.epochs else 2
        metrics = json_row(row) if row is not None else None
        return {"epoch": epoch, "stage": stage, "step": self._step, "created_at": now(), "metrics": metrics}

    def _store(self, folder: Path, about: Mapping[str, Any]) -> None:
        run, storage, keep = self.attempt.job.id, self.attempt.storage, self.spec.keep_checkpoints
        self._stored = store_checkpoint(storage, run, folder, self._stored, keep=keep, about=about)
        storage.put(f"runs/{run}/{METRICS}", json_lines(self._rows))
        self.attempt.ledger.forgive(self.attempt.claim)


def publish(
    attempt: Attempt, spec: TrainingSpec, dataset: DatasetManifest, in_chans: int, result: TrainingResult
) -> None:
    """Store the model's files and then its manifest. A manifest that is there already stays: files are the same."""
    identifier = model_of(attempt.job.id)
    accuracy = None
    if result.evaluation is not None and spec.eval_dataset is not None:
        accuracy = Accuracy(top1=result.evaluation.top1, top5=result.evaluation.top5, dataset=spec.eval_dataset)
    model = Model(
        id=identifier,
        name=spec.name or attempt.job.id,
        created_at=now(),
        owner=attempt.job.owner,
        architecture=spec.student.architecture,
        num_classes=dataset.num_classes,
        in_chans=in_chans,
        image_size=spec.student.image_size,
        class_names=[c.name for c in dataset.classes],
        accuracy=accuracy,
        dataset=dataset.id,
        teacher=spec.teacher,
        run=attempt.job.id,
        spec=attempt.job.published_spec,
    )
    written = [path for name in FILES if (path := result.weights.with_name(name)).exists()]
    if REPORT not in (path.name for path in written):
        attempt.note(f"{REPORT} could not be written: the worker's log says why; the model is whole without it")
    files = [_publish_file(attempt.storage, identifier, path) for path in written]
    attempt.storage.put(f"runs/{attempt.job.id}/{METRICS}", json_lines(result.history))
    attempt.confirm()
    try:
        models(attempt.storage).create(model.model_copy(update={"files": files}))
    except AlreadyExists:
        attempt.note("the model's manifest lies in storage already: an earlier attempt wrote it")


def _publish_file(storage: Storage, model: str, path: Path) -> StoredFile:
    """Store a file of a model; one that an earlier attempt at the run stored stays, for a manifest may name it."""
    key = f"models/{model}/{path.name}"

    def adopt() -> StoredFile:
        storage.download(key, path)
        return describe_file(path)

    return storage.create_or_adopt(key, path, describe_file(path), adopt)
