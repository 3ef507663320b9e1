"""A run at its end, as its card and its report are told of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dearkd.specs import Task, TeacherSpec, TrainingSpec
from dearkd.vision.shards import Indices, ShardDataset
from dearkd_trainer.evaluate.evaluation import Evaluation
from dearkd_trainer.model.student import Student
from dearkd_trainer.record.facts import RunFacts

Metrics = Mapping[str, int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run at its end, with all that its report tells of."""

    spec: TrainingSpec
    task: Task
    about: RunFacts
    student: Student
    """With the final weights."""
    rows: Sequence[Metrics]
    """The metrics of every epoch."""
    heads: Sequence[Sequence[float]]
    """Mean attention distance of each head of each layer, in pixels; empty where there is no attention."""
    dataset: ShardDataset
    trained: Indices
    """The samples that were trained on."""
    held_out: Indices
    """The samples of the same dataset that were not."""
    eval_dataset: ShardDataset | None
    evaluation: Evaluation | None
    """The final weights' results on the evaluation dataset."""
    teacher: TeacherSpec | None
    device: torch.device
    crop_pct: float

    @property
    def name(self) -> str:
        return self.about.name or self.spec.name or "DearKD student"

    @property
    def trained_on(self) -> str:
        return self.about.dataset or self.spec.dataset

    @property
    def names(self) -> list[str]:
        """A name for each class."""
        return self.task.class_names or [str(label) for label in range(self.task.num_classes)]

    @property
    def evaluated_on(self) -> str:
        return self.spec.eval_dataset or "the evaluation dataset"

    @property
    def published_spec(self) -> dict[str, Any]:
        """The spec without whom the run tells, who reads of its model is not to learn of that."""
        return self.spec.model_dump(mode="json", exclude={"webhook"})
