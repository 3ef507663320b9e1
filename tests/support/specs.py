"""Specs as small as the ledger needs them."""

from typing import Any

from dearkd.specs import DatasetFacts, SynthesisSpec, TeacherSpec, TrainingSpec

TEACHER = TeacherSpec(
    name="t",
    architecture="resnet10t",
    num_classes=10,
    in_chans=1,
    image_size=32,
    mean=[0.5],
    std=[0.5],
)
FACTS = DatasetFacts(
    num_samples=2000, num_classes=10, image_size=32, in_chans=1, synthetic=True, mirrored=False, teacher="tch"
)


def synthesis_spec(**fields: Any) -> SynthesisSpec:
    return SynthesisSpec.resolve({"teacher": "tch", **fields}, TEACHER)


def training_spec(dataset: str, **fields: Any) -> TrainingSpec:
    return TrainingSpec.resolve({"dataset": dataset, **fields}, FACTS, TEACHER)
