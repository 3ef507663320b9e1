"""The names that the packages show: who removes or adds one does so on purpose."""

import importlib

import pytest

PUBLIC = {
    "dearkd_distill": {"Distillation", "distill"},
    "dearkd_synth": {"DeepInversion", "SynthesisedShard"},
    "dearkd_trainer": {
        "DearKDTrainer",
        "FrozenTeacher",
        "Student",
        "StudentOutput",
        "TrainingResult",
        "register_student",
    },
    "dearkd.client": {"JOBS", "AsyncClient", "Client"},
    "dearkd.specs": {
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
    },
}


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_shows_these_names_and_has_them(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) == PUBLIC[package]
    assert all(hasattr(module, name) for name in PUBLIC[package])
