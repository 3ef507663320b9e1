"""Requests, and the specs of teachers, synthesis jobs and training runs that they become.

A request is a spec with almost everything left out. With its teacher, or with what is known of its dataset, it becomes
a spec (the preset's or recipe's, explicit fields win) that is checked as a whole: complete, frozen, and equal to what
it becomes if it is asked for itself. `SynthesisSpec.resolve` and `TrainingSpec.resolve` take both steps for a JSON
object.
"""

from dearkd.choices import Recipe
from dearkd.specs.base import Limits, Name, Precision, Priority, Spec
from dearkd.specs.dataset_facts import DatasetFacts
from dearkd.specs.generator import GeneratorSpec
from dearkd.specs.synthesis import Phase, Preset, SynthesisSpec, SynthesisWeights
from dearkd.specs.synthesis_request import SynthesisRequest
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
from dearkd.specs.training_request import TrainingRequest

__all__ = [
    "AugmentationSpec",
    "DatasetFacts",
    "GeneratorSpec",
    "Limits",
    "Name",
    "OptimizerSpec",
    "PairSpec",
    "Phase",
    "Precision",
    "Preset",
    "Priority",
    "Recipe",
    "Spec",
    "StageOneSpec",
    "StageOneWeights",
    "StageTwoSpec",
    "StudentSpec",
    "SynthesisRequest",
    "SynthesisSpec",
    "SynthesisWeights",
    "Task",
    "TeacherSpec",
    "TrainingRequest",
    "TrainingSpec",
]
