"""Mirrors in specs: none while images are made, and in training what the teacher bears."""

from typing import Any

import pytest

from dearkd.specs import DatasetFacts, SynthesisSpec, TeacherSpec, TrainingSpec


def teacher(in_chans: int) -> TeacherSpec:
    fields = {"name": "t", "architecture": "resnet10t", "num_classes": 10, "in_chans": in_chans, "image_size": 32}
    return TeacherSpec.check(fields | {"mean": [0.5] * in_chans, "std": [0.5] * in_chans})


@pytest.mark.parametrize(
    ("facts", "taught", "hflip"),
    [
        ({}, True, None),
        ({"synthetic": True}, True, None),
        ({"in_chans": 1}, True, None),
        ({"mirrored": True}, True, 0.5),
        ({"mirrored": False}, True, 0.0),
        ({}, False, 0.5),
        ({"synthetic": True}, False, 0.0),
        ({"in_chans": 1}, False, 0.0),
        ({"mirrored": True, "in_chans": 1}, False, 0.5),
    ],
)
def test_the_teacher_says_whether_views_are_mirrored_where_there_is_one(
    facts: dict[str, Any], taught: bool, hflip: float | None
) -> None:
    """Without one a set of colour images is taken for photographs, and a synthetic one for what it was made of."""
    known: dict[str, Any] = {"in_chans": 3, "synthetic": False, "mirrored": None} | facts
    dataset = DatasetFacts(num_samples=500, num_classes=10, image_size=32, teacher=None, **known)
    plain = {"stage_one": {"distillation": "none", "weights": {"hidden": 0.0}}}
    posted = {"dataset": "ds"} | ({"teacher": "t"} if taught else plain)
    spec = TrainingSpec.resolve(posted, dataset, teacher(known["in_chans"]) if taught else None)
    assert spec.augmentation.hflip == hflip
    asked = TrainingSpec.resolve(
        posted | {"augmentation": {"hflip": 0.25}}, dataset, teacher(known["in_chans"]) if taught else None
    )
    assert asked.augmentation.hflip == 0.25


def test_nothing_is_mirrored_while_images_are_made_unless_it_is_asked_for() -> None:
    """Colour says nothing about mirrors: letters have it too."""
    for chans in (1, 3):
        assert SynthesisSpec.resolve({"teacher": "t"}, teacher(chans)).flip == 0
        assert SynthesisSpec.resolve({"teacher": "t", "flip": 0.5}, teacher(chans)).flip == 0.5
