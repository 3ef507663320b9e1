"""All that a run needs, as files of this machine: from it a trainer is made, here or in each process of a group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, Field

from dearkd.settings import Settings
from dearkd.specs import TeacherSpec, TrainingSpec
from dearkd.vision.shards import ShardDataset
from dearkd.vision.teachers import load_teacher
from dearkd_trainer.model.export import load_model
from dearkd_trainer.model.student import DearKDViT
from dearkd_trainer.service.data import Source, open_shards
from dearkd_trainer.train.failures import explained
from dearkd_trainer.train.trainer import DearKDTrainer, Metrics


class RunInputs(BaseModel):
    """Paths are of verified local files; `directory` is the run's own, with its checkpoints."""

    spec: TrainingSpec
    directory: Path
    shards: Source
    eval_shards: Source | None
    settings: dict[str, Any] = Field(default_factory=dict)
    """Where shards that are fetched when they are needed lie, and where the cache (`data.PLACES`)."""
    num_classes: int
    in_chans: Literal[1, 3]
    mean: list[float]
    std: list[float]
    class_names: list[str]
    teacher: TeacherSpec | None
    """None where stage one looks at none."""
    teacher_weights: Path | None
    initial: dict[str, Any] | None = None
    """The `config.json` of the model to begin from."""
    initial_weights: Path | None = None

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
            teacher = load_teacher(self.teacher, self.teacher_weights, device=device)
        initial = None
        if self.initial is not None and self.initial_weights is not None:
            initial = cast(DearKDViT, load_model(self.initial, self.initial_weights)).to(device)
        return DearKDTrainer(
            self.spec,
            self._open(self.shards, check),
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            mean=self.mean,
            std=self.std,
            directory=self.directory,
            teacher=teacher,
            teacher_spec=self.teacher,
            initial=initial,
            eval_dataset=self._open(self.eval_shards, check) if self.eval_shards is not None else None,
            class_names=self.class_names,
            class_order="given",  # the API has compared them with the teacher's when the run was posted
            device=device,
            **callbacks,
        )

    def _open(self, shards: Source, check: Callable[[], None]) -> ShardDataset:
        settings = Settings(**self.settings)
        return open_shards(shards, settings, num_classes=self.num_classes, in_chans=self.in_chans, check=check)
