"""What is asked for: the specs of teachers, synthesis jobs and training runs, checked at the door.

A posted spec is a JSON object with almost everything left out. `resolve` fills it in for its teacher or dataset (the
preset's or recipe's values, explicit fields win) and checks it as a whole; what it returns is complete, frozen, and
resolves to itself.
"""

from dearkd.specs.base import Limits, Name, Precision, Priority, Spec
from dearkd.specs.dataset_facts import DatasetFacts
from dearkd.specs.synthesis import Phase, SynthesisSpec, SynthesisWeights
from dearkd.specs.task import Task
from dearkd.specs.teacher import TeacherSpec
from dearkd.specs.training import (
    AugmentationSpec,
    OptimizerSpec,
    PairSpec,
    StageOneSpec,
    StageOneWeights,
    StageTwoSpec,
    StudentSpec,
    TrainingSpec,
)

__all__ = [
    "AugmentationSpec",
    "DatasetFacts",
    "Limits",
    "Name",
    "OptimizerSpec",
    "PairSpec",
    "Phase",
    "Precision",
    "Priority",
    "Spec",
    "StageOneSpec",
    "StageOneWeights",
    "StageTwoSpec",
    "StudentSpec",
    "SynthesisSpec",
    "SynthesisWeights",
    "Task",
    "TeacherSpec",
    "TrainingSpec",
]
