"""The specs that follow from a request to distill."""

import timm
import torch

from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd_distill.inputs import Teacher
from dearkd_distill.plan import Plan

SIZE = 48


def planned(architecture: str) -> SynthesisSpec:
    spec = TeacherSpec(
        name=architecture,
        architecture=architecture,
        num_classes=10,
        in_chans=3,
        image_size=SIZE,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    torch.manual_seed(0)
    module = timm.create_model(architecture, num_classes=10)
    module.train()(torch.randn(8, 3, SIZE, SIZE))  # statistics as of some data
    asked = {"preset": "published-imagenet", "images_per_class": 4}
    return Plan(Teacher(module.eval(), spec), None, None, None, None, 0, asked, {}).synthesis_spec()


def test_a_teacher_is_shown_the_sizes_that_it_takes() -> None:
    assert [phase.input_size for phase in planned("resnet10t").phases] == [SIZE // 2, SIZE]
    assert [phase.input_size for phase in planned("vgg11_bn").phases] == [SIZE, SIZE], "24 px are too few for its pools"
