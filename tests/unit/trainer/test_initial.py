"""A student that begins with the weights of a trained one."""

import copy
from pathlib import Path

import pytest
import torch

from dearkd.errors import InvalidInput
from dearkd.specs import DatasetFacts, StudentSpec, TrainingSpec
from dearkd_trainer.model.student import Student, create_student
from tests.support.bars import CLASSES, MakeSpec, MakeTrainer

pytestmark = pytest.mark.slow

TRAINED = StudentSpec(
    architecture="dearkd_micro_patch8_32",
    image_size=16,
    patch_size=4,
    embed_dim=16,
    depth=2,
    num_heads=2,
    mhca_blocks=1,
    drop_path_rate=0.0,
    distilled=True,
)


def student(num_classes: int = CLASSES, **changes: object) -> Student:
    return create_student(TRAINED.model_copy(update=changes), num_classes, in_chans=1).eval()


def test_at_its_own_size_it_computes_the_same() -> None:
    trained, fresh = student(), student()
    before = copy.deepcopy(trained.state_dict())
    fresh.begin_from(trained)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(fresh(images), trained(images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_at_another_size_and_with_other_classes_only_the_heads_are_new() -> None:
    trained, fresh = student(), student(num_classes=5, image_size=32)
    heads = copy.deepcopy({name: tensor for name, tensor in fresh.state_dict().items() if name.startswith("head")})
    fresh.begin_from(trained)
    resampled = copy.deepcopy(trained)
    resampled.set_input_size(img_size=(32, 32))
    images = torch.randn(2, 1, 32, 32)
    assert fresh(images).shape == (2, 5)
    torch.testing.assert_close(fresh.forward_features(images), resampled.forward_features(images))
    assert len(heads) == 4
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in heads.items())


def test_other_dimensions_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"other dimensions: .*blocks\.1") as caught:
        student().begin_from(student(depth=1))
    assert [error.pointer for error in caught.value.errors] == ["/init"]


def test_a_run_begins_with_them_and_goes_on_without(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trained = make_trainer(make_spec(), directory=tmp_path / "first")
    trained.fit()
    initial = copy.deepcopy(trained.student)
    spec = make_spec(init="mdl-1", optimizer={"layer_decay": 0.7, "model_ema_half_life": 1.0})
    tuned = make_trainer(spec, initial=initial)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(tuned.student.eval()(images), initial.eval()(images))
    assert torch.equal(tuned.evaluated.eval()(images), initial(images))
    exported = tuned.fit()
    assert not torch.equal(tuned.student.eval()(images), initial(images))
    again = make_trainer(spec)
    assert again.history == exported.history


def test_its_dimensions_are_the_default_and_others_are_refused() -> None:
    facts = DatasetFacts(num_samples=60, num_classes=3, image_size=32, in_chans=1, synthetic=False, mirrored=False)
    body = {
        "dataset": "ds",
        "init": "mdl-1",
        "batch_size": 16,
        "stage_one": {"distillation": "none", "weights": {"hidden": 0.0}},
    }
    spec = TrainingSpec.resolve(body, facts, None, TRAINED)
    # The run's own image size: weights are resampled to it. What decides no weight is the recipe's.
    assert spec.student == TRAINED.model_copy(update={"image_size": 32})
    assert TrainingSpec.resolve(spec.model_dump(), facts, None, TRAINED) == spec
    with pytest.raises(InvalidInput) as caught:
        TrainingSpec.resolve({**body, "student": {"depth": 3, "patch_size": 8}}, facts, None, TRAINED)
    assert {error.pointer for error in caught.value.errors} == {"/student/depth", "/student/patch_size"}
