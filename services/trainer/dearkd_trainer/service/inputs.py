"""The inputs of a run as files of this machine, from which a trainer is made: here, or in each process of a group."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, Field

from dearkd.settings import Settings
from dearkd.specs import Task, TeacherSpec, TrainingSpec
from dearkd.storage.catalog import fetch_model_file, fetch_weights, models, teachers
from dearkd.storage.checkpoints import StoredCheckpoint
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision.shards import ShardDataset
from dearkd.vision.teachers import load_teacher
from dearkd_trainer.evaluate.report import ATTENTION, EVALUATION, METRICS
from dearkd_trainer.model.export import CARD, CONFIG, REPORT, SAMPLES, WEIGHTS, load_model
from dearkd_trainer.model.student import Student
from dearkd_trainer.record.facts import RunFacts
from dearkd_trainer.service.checkpoints import fetch_checkpoint
from dearkd_trainer.service.data import Source, open_shards
from dearkd_trainer.train.failures import explained
from dearkd_trainer.train.teacher import FrozenTeacher
from dearkd_trainer.train.trainer import DearKDTrainer, Metrics

FILES = (WEIGHTS, CONFIG, CARD, SAMPLES, REPORT, METRICS, EVALUATION, ATTENTION)
"""The files of a model, as far as its run has left them."""


class StoredInputs(BaseModel):
    """The inputs of a run by their ids, from which any machine that reaches the storage makes its `RunInputs`."""

    run: str
    spec: TrainingSpec
    task: Task
    settings: dict[str, Any]
    """The settings (`data.PLACES`) by which storage and cache are found."""
    about: RunFacts

    def fetch(
        self,
        storage: Storage,
        cache: FileCache,
        shards: tuple[Source, Source | None],
        directory: Path,
        note: Callable[[str], None],
    ) -> tuple["RunInputs", StoredCheckpoint]:
        """Fetch weights and the last checkpoint to this machine; they stay until the cache is closed.

        Args:
            storage: where they are.
            cache: of this machine.
            shards: what `fetch_datasets` returned.
            directory: for the run's own files.
            note: called with lines for the job's log, such as of a checkpoint that is damaged.

        Returns:
            The inputs, and the checkpoint as `fetch_checkpoint` tells of it.

        Raises:
            NotFound: if the teacher or the model to begin from is gone.
            CorruptData: if one of the files is not what was stored.
        """
        spec, train, evaluated = self.spec, *shards
        inputs = RunInputs(
            spec=spec,
            directory=directory,
            shards=train,
            eval_shards=evaluated,
            settings=self.settings,
            task=self.task,
            teacher=None,
            teacher_weights=None,
            about=self.about,
        )
        if spec.teacher is not None and spec.needs_teacher:
            teacher = teachers(storage).get(spec.teacher)
            inputs.teacher, inputs.teacher_weights = teacher.spec, fetch_weights(storage, teacher, cache)
        if spec.init is not None:
            model = models(storage).get(spec.init)
            config = fetch_model_file(storage, model, CONFIG, cache)
            inputs.initial = json.loads(config.read_text(encoding="utf-8"))
            inputs.initial_weights = fetch_model_file(storage, model, WEIGHTS, cache)
        return inputs, fetch_checkpoint(storage, self.run, directory / "checkpoints", note)


class RunInputs(BaseModel):
    """The inputs of a run. Paths are of verified local files; `directory` is the run's own, with its checkpoints."""

    spec: TrainingSpec
    directory: Path
    shards: Source
    eval_shards: Source | None
    settings: dict[str, Any] = Field(default_factory=dict)
    """The settings (`data.PLACES`) by which shards are fetched and cached when they are needed."""
    task: Task
    teacher: TeacherSpec | None
    """None if stage one uses none."""
    teacher_weights: Path | None
    initial: dict[str, Any] | None = None
    """The `config.json` of the model to begin from."""
    initial_weights: Path | None = None
    about: RunFacts = Field(default_factory=RunFacts)

    def trainer(
        self,
        device: torch.device,
        *,
        on_step: Callable[[int, int], None],
        on_epoch: Callable[[Metrics], None],
        on_checkpoint: Callable[[Path], None],
        check: Callable[[], None] = lambda: None,
    ) -> DearKDTrainer:
        """A trainer that goes on from the directory's checkpoint, if there is one. Raises as `DearKDTrainer` does.

        Shards that are fetched when they are needed are all read once for it, with a `check` before each.
        """
        with explained(self.spec, device):
            return self._trainer(device, check, on_step=on_step, on_epoch=on_epoch, on_checkpoint=on_checkpoint)

    def _trainer(self, device: torch.device, check: Callable[[], None], **callbacks: Any) -> DearKDTrainer:
        teacher = None
        if self.teacher is not None and self.teacher_weights is not None:
            teacher = FrozenTeacher(load_teacher(self.teacher, self.teacher_weights, device=device), self.teacher)
        initial = None
        if self.initial is not None and self.initial_weights is not None:
            initial = cast(Student, load_model(self.initial, self.initial_weights)).to(device)
        return DearKDTrainer(
            self.spec,
            self._open(self.shards, check),
            directory=self.directory,
            task=self.task,
            teacher=teacher,
            initial=initial,
            eval_dataset=self._open(self.eval_shards, check) if self.eval_shards is not None else None,
            class_order="given",  # the API has compared them with the teacher's when the run was posted
            about=self.about,
            device=device,
            **callbacks,
        )

    def _open(self, shards: Source, check: Callable[[], None]) -> ShardDataset:
        settings = Settings(**self.settings)
        return open_shards(
            shards, settings, num_classes=self.task.num_classes, in_chans=self.task.in_chans, check=check
        )
