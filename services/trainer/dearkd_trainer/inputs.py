"""All that a run needs, as files of this machine: from it a trainer is made, here or in each process of a gang."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel

from dearkd.specs import TeacherSpec, TrainingSpec
from dearkd.vision.shards import ShardDataset
from dearkd.vision.teachers import load_teacher
from dearkd_trainer.export import load_model
from dearkd_trainer.failures import explained
from dearkd_trainer.student import DearKDViT
from dearkd_trainer.training import DearKDTrainer, Metrics


class RunInputs(BaseModel):
    """Paths are of verified local files; `directory` is the run's own, with its checkpoints."""

    spec: TrainingSpec
    directory: Path
    shards: list[Path]
    eval_shards: list[Path] | None
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
    ) -> DearKDTrainer:
        """A trainer that goes on from the directory's checkpoint, if there is one. Raises as `DearKDTrainer` does."""
        with explained(self.spec, device):
            return self._trainer(device, on_step=on_step, on_epoch=on_epoch, on_checkpoint=on_checkpoint)

    def _trainer(self, device: torch.device, **callbacks: Any) -> DearKDTrainer:
        teacher = None
        if self.teacher is not None and self.teacher_weights is not None:
            teacher = load_teacher(self.teacher, self.teacher_weights, device=device)
        initial = None
        if self.initial is not None and self.initial_weights is not None:
            initial = cast(DearKDViT, load_model(self.initial, self.initial_weights)).to(device)
        return DearKDTrainer(
            self.spec,
            self.open(self.shards),
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            mean=self.mean,
            std=self.std,
            directory=self.directory,
            teacher=teacher,
            teacher_spec=self.teacher,
            initial=initial,
            eval_dataset=self.open(self.eval_shards) if self.eval_shards is not None else None,
            class_names=self.class_names,
            device=device,
            **callbacks,
        )

    def open(self, shards: list[Path]) -> ShardDataset:
        return ShardDataset(shards, num_classes=self.num_classes, in_chans=self.in_chans)
