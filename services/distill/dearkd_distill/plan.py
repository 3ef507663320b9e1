"""The plan of a distillation: its arguments, and the specs of images and training."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dearkd.choices import FolderOrder
from dearkd.errors import InvalidInput
from dearkd.specs import DatasetFacts, SynthesisSpec, TrainingSpec
from dearkd.specs.base import overlay
from dearkd_distill.inputs import Teacher
from dearkd_trainer.record.facts import RunFacts


@dataclass(frozen=True, slots=True)
class Plan:
    """A request, and the specs that follow from it."""

    teacher: Teacher
    images: str | Path | None
    evaluate_on: str | Path | None
    class_order: FolderOrder | None
    budget: float | None
    seed: int
    synthesis: dict[str, Any]
    training: dict[str, Any]

    def request(self) -> dict[str, Any]:
        """All that decides the outcome, as JSON."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.teacher.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        folders = {
            name: str(Path(folder).absolute()) if folder is not None else None
            for name, folder in (("images", self.images), ("evaluate_on", self.evaluate_on))
        }
        return {
            "teacher": self.teacher.spec.model_dump(mode="json") | {"sha256": digest.hexdigest()},
            **folders,
            "class_order": self.class_order,
            "budget": self.budget,
            "seed": self.seed,
            "synthesis": self.synthesis,
            "training": self.training,
        }

    def about(self, state: Mapping[str, Any]) -> RunFacts:
        """The surroundings of the training, for its model's card and report; `state` is `distillation.json`'s."""
        parameters = sum(weight.numel() for weight in self.teacher.module.parameters())
        figures = state.get("quality", {})
        return RunFacts(
            name=self.training.get("name") or f"A transformer of {self.teacher.spec.name}",
            synthetic=self.images is None,
            quality={name: value for name, value in figures.items() if isinstance(value, int | float)},
            teacher={
                "parameters": f"{parameters:,}",
                "weights": f"sha256 {state['request']['teacher']['sha256']} of all tensors by name",
            },
        )

    def facts(self, num_samples: int, *, mirrored: bool | None) -> DatasetFacts:
        task = self.teacher.spec
        return DatasetFacts(
            num_samples=num_samples,
            num_classes=task.num_classes,
            image_size=task.image_size,
            in_chans=task.in_chans,
            synthetic=self.images is None,
            mirrored=mirrored,
        )

    def training_spec(self, facts: DatasetFacts) -> TrainingSpec:
        posted = overlay({"dataset": "images", "seed": self.seed}, self.training)
        return TrainingSpec.resolve(posted, facts, self.teacher.spec)

    def synthesis_spec(self, images_per_class: int | None = None) -> SynthesisSpec:
        """The spec that was asked for, with fewer images where a budget allows no more."""
        posted = overlay({"teacher": self.teacher.spec.name, "seed": self.seed}, self.synthesis)
        if images_per_class is not None:
            posted["images_per_class"] = images_per_class
        teacher = self.teacher
        spec = SynthesisSpec.resolve(posted, teacher.spec, refused_input_sizes=teacher.refused_input_sizes)
        if spec.budget is not None and spec.budget.ends_early:
            raise InvalidInput.at(
                "/budget",
                "nothing ends the synthesis early here: give the distillation a budget of time, or the synthesis one "
                "of teacher_passes without stop_below",
            )
        return spec
