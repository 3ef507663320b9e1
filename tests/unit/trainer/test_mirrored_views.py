"""Views are mirrored where the teacher answers mirrored images as it does the others; it is asked once."""

import pytest
import torch
from torch import Tensor, nn

from dearkd.errors import InvalidInput
from dearkd_trainer import FrozenTeacher
from tests.support.bars import STEPS, TEACHER, MakeSpec, MakeTrainer, stop_at

pytestmark = pytest.mark.slow

LOGITS = {"epochs": 2, "weights": {"hidden": 0.0}}


class Brightest(nn.Module):
    """Names the brightest third of an image, of its rows or of its columns; a mirror swaps the outer columns."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.along = 3 if of == "rows" else 2
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((1, self.along))
        return torch.stack([part.mean(1) for part in means.tensor_split(3, 1)], 1)


@pytest.mark.parametrize(("of", "hflip"), [("rows", 0.5), ("columns", 0.0)])
def test_the_teachers_answers_decide(make_spec: MakeSpec, make_trainer: MakeTrainer, of: str, hflip: float) -> None:
    spec = make_spec(stage_one=LOGITS, augmentation={"hflip": None})
    assert spec.augmentation.hflip is None
    teacher = FrozenTeacher(Brightest(of), TEACHER)
    trainer = make_trainer(spec, teacher=teacher)
    assert trainer.augmentation.hflip == hflip
    assert trainer.augmentation == spec.augmentation.model_copy(update={"hflip": hflip})
    images = torch.stack([trainer.dataset[i][0] for i in range(30)]).float()
    answers = Brightest(of)(images).argmax(1)
    mirrored = Brightest(of)(images.flip(3)).argmax(1)
    assert teacher.mirror_agreement(images) == pytest.approx((answers == mirrored).double().mean().item())


def test_a_number_is_not_measured(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        make_spec(stage_one=LOGITS, augmentation={"hflip": 0.3}), teacher=FrozenTeacher(Brightest("columns"), TEACHER)
    )
    assert trainer.augmentation.hflip == 0.3


def test_a_run_that_goes_on_mirrors_as_before_without_asking_again(
    make_spec: MakeSpec, make_trainer: MakeTrainer
) -> None:
    """Also past stage one, where there may be no teacher any more."""
    spec = make_spec(stage_one=LOGITS, augmentation={"hflip": None})
    with pytest.raises(KeyboardInterrupt):
        make_trainer(spec, teacher=FrozenTeacher(Brightest("rows"), TEACHER), on_step=stop_at(3 * STEPS + 1)).fit()
    for teacher in (None, FrozenTeacher(Brightest("columns"), TEACHER)):
        assert make_trainer(spec, teacher=teacher).augmentation.hflip == 0.5


def test_with_nobody_to_ask_a_number_is_wanted(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    plain = make_spec(stage_one={"epochs": 2, "distillation": "none", "weights": {"hidden": 0.0}})
    assert plain.augmentation.hflip == 0.0
    open_one = plain.model_copy(update={"augmentation": plain.augmentation.model_copy(update={"hflip": None})})
    with pytest.raises(InvalidInput, match="give a number") as refused:
        make_trainer(open_one, teacher=None)
    assert refused.value.errors[0].pointer == "/augmentation/hflip"
