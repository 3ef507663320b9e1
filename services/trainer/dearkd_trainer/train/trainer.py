"""DearKD's two stages as one run: from a dataset and a teacher to a trained student, restartable.

trainer = DearKDTrainer(spec, ShardDataset(...), teacher=FrozenTeacher(network, teacher_spec), directory=Path("run"))
result = trainer.fit()
"""

import functools
import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dearkd.choices import ClassOrder
from dearkd.errors import InvalidInput
from dearkd.specs import Task, TrainingSpec
from dearkd.vision.shards import Held, Indices, ShardDataset, split
from dearkd_trainer.data import loader
from dearkd_trainer.data.recipe import eval_crop_pct, train_transform
from dearkd_trainer.evaluate.attention import to_row
from dearkd_trainer.evaluate.evaluation import Evaluation, evaluate, normalised_sample
from dearkd_trainer.evaluate.report import write_rows
from dearkd_trainer.model.attention import layer_means
from dearkd_trainer.model.export import WEIGHTS, model_config, save_model
from dearkd_trainer.model.student import Student
from dearkd_trainer.record.checkpoint import BEST, comparable, load_checkpoint, save_best, save_checkpoint
from dearkd_trainer.record.facts import RunFacts
from dearkd_trainer.record.meter import EpochMeter, diverged, peak_memory, reset_peak_memory
from dearkd_trainer.report.finished_run import FinishedRun
from dearkd_trainer.report.run import write_run_report
from dearkd_trainer.train.failures import explained
from dearkd_trainer.train.learner import Learner
from dearkd_trainer.train.mirrored_views import measured_hflip
from dearkd_trainer.train.preconditions import check_class_names, check_data, checked_world, task_of
from dearkd_trainer.train.teacher import FrozenTeacher

log = logging.getLogger(__name__)

Metrics = dict[str, int | float]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The results of a run."""

    metrics: Metrics
    """The last epoch's row."""
    history: list[Metrics]
    """All rows."""
    evaluation: Evaluation | None
    """The evaluation of the final weights on the evaluation dataset; None without one."""
    weights: Path
    """`model.safetensors`: the last epoch's weights, averaged where the spec asks for averaging. Beside it lie
    `config.json`, `README.md` (the card), `report.html`, `metrics.jsonl`, `attention_distance.png` and, with an
    evaluation dataset, `evaluation.json`."""
    config: dict[str, Any]
    """The content of the `config.json` beside them."""


class DearKDTrainer:
    """Trains the student of a spec. A directory that holds a checkpoint of the same spec and data is gone on with.

    On the same number of CPU threads (`threads` in the rows) the run is then what it would have been undisturbed, to
    the bit; on another it is so up to the order of sums, and a warning says that it changed.

    Where the spec asks for several processes, each makes one of these, after they joined
    (`dearkd_trainer.data.world`), with the same arguments but for `device`. Evaluation is shared; rank 0 alone writes
    and calls back.

    Args:
        spec: a resolved training spec; its dataset and teacher ids are not used.
        dataset: to train on; a part of it (`spec.holdout`) chooses `best` and is not trained on.
        directory: checkpoints and the exported model are written here.
        task: of the dataset's classes and channels, at the student's image size; its class names are exported with the
            model. None: the teacher's.
        teacher: needed if stage one uses one, unless the run is past it. Its network is frozen, set to eval mode
            and moved to `device`, and let go of at the switch (a caller that wants its memory back does the same).
        initial: a trained student of the same dimensions, whose weights this one begins with, for fine-tuning; to
            another resolution they are resampled, for other classes the heads are new.
        eval_dataset: accuracy on it is reported, and decides nothing.
        class_order: of the task's class names, where names alone do not decide it (`preconditions.check_class_names`).
        about: for card and report, what else is known of data and teacher.
        device: where to train.
        on_step: called after each step with the steps done and their total; what it raises ends the run. It may `save`
            before.
        on_epoch: called after each epoch with its metrics. After a restart the epochs since the last checkpoint come
            again, with the same losses.
        on_checkpoint: called with the path of each checkpoint, once it is committed.

    Raises:
        InvalidInput: if a dataset is empty or of other classes or channels, the teacher is missing or does not fit, or
            other than the spec's number of processes have joined.
        CorruptData: if an image or the checkpoint cannot be read.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        dataset: ShardDataset,
        *,
        directory: Path,
        task: Task | None = None,
        teacher: FrozenTeacher | None = None,
        initial: Student | None = None,
        eval_dataset: ShardDataset | None = None,
        class_order: ClassOrder | None = None,
        about: RunFacts | None = None,
        device: torch.device | str = "cpu",
        on_step: Callable[[int, int], None] | None = None,
        on_epoch: Callable[[Metrics], None] | None = None,
        on_checkpoint: Callable[[Path], None] | None = None,
    ) -> None:
        self.spec = spec
        self.dataset = dataset
        self.eval_dataset = eval_dataset
        self.task = task = task_of(spec, task, teacher)
        self.crop_pct = eval_crop_pct(spec.augmentation)
        self.directory = directory
        self.about = about or RunFacts()
        self.device = torch.device(device)
        self.on_step, self.on_epoch, self.on_checkpoint = on_step, on_epoch, on_checkpoint
        check_data(task, dataset, eval_dataset)
        check_class_names(task.class_names, teacher.spec if teacher else None, class_order)
        self.train_indices, self.holdout_indices = split(
            dataset.labels, fraction=spec.fraction, holdout=spec.holdout, seed=spec.seed
        )
        if spec.reads_logits and not dataset.has_logits:
            raise InvalidInput.at(
                "/stage_one/teacher_logits", "stored, but not every image of the dataset has logits beside it"
            )
        self.world = checked_world(spec, len(self.train_indices))
        self.steps_per_epoch = -(-len(self.train_indices) // spec.batch_size)
        self.history: list[Metrics] = []
        self.best: Metrics = {}
        fields = task.model_dump(include={"num_classes", "in_chans", "mean", "std"})
        self._data = {**fields, "samples": dataset.fingerprint()}
        state = load_checkpoint(directory / "checkpoints", spec, self._data)
        self.epoch: int = state["epoch"] if state else 0
        """Epochs done."""

        wanted = None
        if spec.needs_teacher and self.epoch < spec.stage_one.epochs:
            if teacher is None:
                raise InvalidInput.at("/teacher", "stage one distils, but there is no teacher: give one with its spec")
            wanted = teacher.prepared(task, self.device)
        # Decoded once, for all that is measured on it.
        sample = functools.cache(lambda: self._sample(dataset, self.train_indices).to(self.device))
        self.augmentation = spec.augmentation
        if spec.augmentation.hflip is None:
            hflip = state["hflip"] if state else measured_hflip(wanted, sample())
            self.augmentation = spec.augmentation.model_copy(update={"hflip": hflip})
        self.learner = Learner(
            spec,
            task=task,
            teacher=wanted,
            epoch=self.epoch,
            steps_per_epoch=self.steps_per_epoch,
            sample=sample,
            initial=initial,
            device=self.device,
            world=self.world,
        )
        self._meter = EpochMeter(self.epoch * self.steps_per_epoch)
        self._saved_at = time.monotonic()
        self._evaluation: Evaluation | None = None
        self._heads: list[list[float]] | None = None
        self._teacher_spec = teacher.spec if teacher else None
        if state:
            self.history = state["history"]
            # Without the weights that it tells of, the next ones that are evaluated are the best.
            self.best = state["best"] if (directory / "checkpoints" / BEST).exists() else {}
            self._meter = EpochMeter(self.epoch * self.steps_per_epoch, **state["begun"])
            self.learner.restore(state)
            if state["threads"] != torch.get_num_threads():
                log.warning(
                    "the run goes on with %d CPU threads, its checkpoint was made with %d: from here on it is that of "
                    "before up to the order of sums, not to the bit",
                    torch.get_num_threads(),
                    state["threads"],
                )

    @property
    def student(self) -> Student:
        return self.learner.student

    @property
    def evaluated(self) -> Student:
        """The weights that are evaluated and exported: averaged, where the spec asks for averaging."""
        return self.learner.evaluated

    @property
    def step(self) -> int:
        """Steps done, from the run's beginning."""
        return self._meter.first_step + self._meter.steps

    def fit(self) -> TrainingResult:
        """Run to the end, from the last checkpoint on.

        Raises:
            Diverged: naming the first step whose loss was not finite; no checkpoint is made after it.
            CorruptData: if an image cannot be read.
            OutOfMemory: naming what would take less.
            LoaderLost: if a process that reads images was killed; made anew, the trainer goes on from its checkpoint.
            BaseException: whatever a callback raises.
        """
        with explained(self.spec, self.device):
            self._train()
            return self._finish()

    def save(self) -> None:
        """Commit a checkpoint of the last step done; for `on_step`, when the process has to end.

        Raises:
            Diverged: if the loss, a weight or a moment of the optimiser is not finite; the last checkpoint stays.
            BaseException: whatever `on_checkpoint` raises.
        """
        if self.world.rank != 0:
            return
        with self._meter.paused():
            self._require_finite()
            path = save_checkpoint(
                self.directory / "checkpoints",
                {
                    "spec": comparable(self.spec),
                    "data": self._data,
                    "epoch": self.epoch,
                    "sample_offset": int(self._batches().sizes[: self._meter.steps].sum()),
                    "begun": self._meter.state(),
                    "threads": torch.get_num_threads(),
                    "hflip": self.augmentation.hflip,
                    "history": self.history,
                    "best": self.best,
                    **self.learner.state(),
                },
                keep=self.spec.keep_checkpoints,
            )
            self._saved_at = time.monotonic()
            if self.on_checkpoint:
                self.on_checkpoint(path)

    def _train(self) -> None:
        self.dataset.preload()
        held = self._hold()
        # What is held is let go first: that wakes who waits for it, without whom the batches could not be closed.
        with loader.preserved_generators(), closing(self._read_ahead(held)) as batches, closing(held):
            while self.epoch < self.spec.epochs:
                reset_peak_memory(self.device)
                row = self._train_epoch(batches)
                self.epoch += 1
                self._meter = EpochMeter(self.epoch * self.steps_per_epoch)
                if self.epoch == self.spec.stage_one.epochs:
                    self.learner.leave_stage_one()
                last = self.epoch == self.spec.epochs
                if last or self.epoch % self.spec.eval_every == 0:
                    row |= self._evaluate_epoch()
                if self.world.rank == 0 and self.epoch in (self.spec.stage_one.epochs, self.spec.epochs):
                    self._heads = self._look_at_attention()
                    row |= to_row(layer_means(self._heads))
                self.history.append(row)
                if self.world.rank == 0:
                    write_rows(self.directory, self.history)
                if self.on_epoch and self.world.rank == 0:
                    self.on_epoch(row)
                if last or self.epoch % self.spec.checkpoint_every == 0:
                    self.save()

    def _require_finite(self) -> None:
        if not self.learner.is_finite():
            raise diverged(f"a weight or a moment of the optimiser left the finite numbers by step {self.step}")

    def _batches(self) -> loader.EpochBatches:
        """The batches that are still to come."""
        return loader.EpochBatches(
            self.train_indices,
            self.spec.batch_size,
            seed=self.spec.seed,
            epochs=range(self.epoch, self.spec.epochs),
            repeats=self.spec.augmentation.aug_repeats,
            skip=self._meter.steps,
            world=self.world,
            shards=self.dataset.shards,
            window=self.spec.shuffle_shards,
        )

    def _hold(self) -> Held:
        """The shards of this window and of the next."""
        shards = 2 * (self.spec.shuffle_shards or 1)
        return self.dataset.hold(self._batches().samples(), max_shards=shards, workers=self.spec.workers)

    def _read_ahead(self, held: Held) -> Generator[loader.Batch, None, None]:
        spec, task = self.spec, self.task
        transform = train_transform(self.augmentation, image_size=task.image_size, mean=task.mean, std=task.std)
        batches = loader.create_loader(
            self.dataset,
            transform,
            self._batches(),
            seed=spec.seed,
            workers=spec.workers,
            pin_memory=self.device.type == "cuda",
            logits_before=spec.stage_one.epochs if spec.reads_logits else 0,
            held=held,
        )
        with closing(batches):
            yield from loader.read_ahead(batches) if spec.workers else batches

    def _train_epoch(self, batches: Iterator[loader.Batch]) -> Metrics:
        self.student.train()
        meter, sizes = self._meter, self._batches().sizes
        with_teacher = self.learner.teacher is not None
        for place in range(meter.steps, self.steps_per_epoch):
            step = meter.first_step + place
            with meter.waiting():
                images, labels, *logits = next(batches)
            whole = int(sizes[place])
            meter.add(self.learner.step(step, images, labels, *logits, global_batch=whole), whole)
            if self.on_step and self.world.rank == 0:
                self.on_step(step + 1, self.spec.epochs * self.steps_per_epoch)
            if time.monotonic() - self._saved_at > self.spec.checkpoint_seconds and place + 1 < self.steps_per_epoch:
                self.save()
        means = meter.means()
        self._require_finite()  # what the last step did shows in no loss, and `best` shall not be overwritten by it
        return {
            "epoch": self.epoch + 1,
            "stage": 1 if self.epoch < self.spec.stage_one.epochs else 2,
            **means,
            # With layer_decay that of the head: those below it are less.
            "learning_rate": max(group["lr"] for group in self.learner.optimizer.param_groups),
            **meter.pace(self.learner.clock.read() if with_teacher else None),
            "peak_memory": peak_memory(self.device),
            "threads": torch.get_num_threads(),
        }

    def _evaluate_epoch(self) -> Metrics:
        row: Metrics = {}
        if len(self.holdout_indices):
            row["holdout_top1"] = self._evaluate(self.dataset, self.holdout_indices, confusion=False).top1
            if row["holdout_top1"] >= self.best.get("holdout_top1", 0.0):
                self.best = {"epoch": self.epoch, **row}
                if self.world.rank == 0:
                    save_best(self.directory / "checkpoints", self.evaluated, self.best)
        if self.eval_dataset is not None:
            self._evaluation = self._evaluate(self.eval_dataset, confusion=self.epoch == self.spec.epochs)
            row["eval_top1"] = self._evaluation.top1
            row["eval_top5"] = self._evaluation.top5
            row["eval_loss"] = self._evaluation.loss
            row["eval_calibration_error"] = self._evaluation.expected_calibration_error
        return row

    def _look_at_attention(self) -> list[list[float]]:
        """Measure how far each head of each layer looks, which stage one teaches and stage two may undo."""
        images = self._sample(self.dataset if self.eval_dataset is None else self.eval_dataset)
        return self.evaluated.attention_distances(images.to(self.device))

    def _sample(self, data: ShardDataset, indices: Indices | None = None) -> Tensor:
        task = self.task
        return normalised_sample(data, task.image_size, task.mean, task.std, crop_pct=self.crop_pct, indices=indices)

    def _evaluate(self, dataset: ShardDataset, indices: Indices | None = None, *, confusion: bool) -> Evaluation:
        return evaluate(
            self.evaluated,
            dataset,
            indices=indices,
            image_size=self.task.image_size,
            mean=self.task.mean,
            std=self.task.std,
            crop_pct=self.crop_pct,
            device=self.device,
            precision=self.spec.precision,
            workers=0 if dataset.preload() else self.spec.workers,
            world=self.world,
            confusion=confusion,
        )

    def _finish(self) -> TrainingResult:
        if self.eval_dataset is not None and self._evaluation is None:
            self._evaluation = self._evaluate(self.eval_dataset, confusion=True)
        config = model_config(self.spec.student, self.student, self.task, crop_pct=self.crop_pct)
        weights = self.directory / WEIGHTS
        if self.world.rank == 0:
            save_model(self.directory, self.evaluated, config)
            write_rows(self.directory, self.history)
            run = FinishedRun(
                spec=self.spec.model_copy(update={"augmentation": self.augmentation}),
                task=self.task,
                about=self.about,
                student=self.evaluated,
                rows=self.history,
                heads=self._heads or self._look_at_attention(),
                dataset=self.dataset,
                trained=self.train_indices,
                held_out=self.holdout_indices,
                eval_dataset=self.eval_dataset,
                evaluation=self._evaluation,
                teacher=self._teacher_spec,
                device=self.device,
                crop_pct=self.crop_pct,
            )
            write_run_report(self.directory, run)
        return TrainingResult(self.history[-1], self.history, self._evaluation, weights, config)
