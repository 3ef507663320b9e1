"""The student's image size and patch size: whatever the teacher's size, the defaults are a run that can be trained."""

import pytest

from dearkd.errors import InvalidInput
from dearkd.specs import DatasetFacts, TrainingSpec
from dearkd.specs.geometry import choose_image_size, choose_patch_size
from dearkd.specs.training import StudentSpec
from tests.support.specs import TEACHER


def student(image_size: int, /, **fields: int | None) -> StudentSpec:
    """The student of a run on images of a teacher of that size, with those fields set."""
    facts = DatasetFacts(
        num_samples=10_000, num_classes=10, image_size=image_size, in_chans=1, synthetic=True, mirrored=True
    )
    teacher = TEACHER.model_copy(update={"image_size": image_size})
    return TrainingSpec.resolve({"dataset": "ds", "teacher": "t", "student": fields}, facts, teacher).student


def tokens(student: StudentSpec) -> int:
    assert student.image_size % student.patch_size == 0
    return (student.image_size // student.patch_size) ** 2


@pytest.mark.parametrize("sizes", [range(8, 1025), range(1025, 4097, 7)], ids=["to 1024", "beyond"])
def test_any_teachers_size_gives_a_student_near_it_with_a_sane_number_of_tokens(sizes: range) -> None:
    for size in sizes:
        chosen = student(size)
        assert 64 <= tokens(chosen) <= 400, (size, chosen)
        assert abs(chosen.image_size - size) <= max(1, 0.07 * size), (size, chosen)


@pytest.mark.parametrize(
    ("size", "image_size", "patch_size"),
    [
        *((28, 28, 2), (32, 32, 4), (64, 64, 8), (96, 96, 12), (128, 128, 16), (224, 224, 16), (320, 320, 16)),
        *((127, 128, 16), (226, 224, 16), (227, 224, 16), (331, 336, 21), (37, 36, 4), (384, 384, 24), (512, 512, 32)),
    ],
)
def test_sizes_that_are_met_often(size: int, image_size: int, patch_size: int) -> None:
    chosen = student(size)
    assert (chosen.image_size, chosen.patch_size) == (image_size, patch_size)


@pytest.mark.parametrize("patch_size", [1, 2, 4, 7, 14, 16, 32])
@pytest.mark.parametrize("size", [16, 31, 32, 127])
def test_a_patch_that_is_set_gets_an_image_that_it_divides(size: int, patch_size: int) -> None:
    chosen = student(size, patch_size=patch_size)
    assert chosen.patch_size == patch_size
    assert tokens(chosen) >= 1
    assert abs(chosen.image_size - size) <= max(patch_size / 2, patch_size - size)


def test_a_patch_that_no_image_has_is_refused_where_it_is_set() -> None:
    with pytest.raises(InvalidInput) as caught:
        student(32, patch_size=5000)
    assert [error.pointer for error in caught.value.errors] == ["/student/patch_size"]


@pytest.mark.parametrize("size", [127, 226, 227, 331, 1009])
def test_an_image_that_is_set_and_has_no_fitting_patch_is_refused_with_one_close_by(size: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        student(32, image_size=size)
    (error,) = caught.value.errors
    assert error.pointer == "/student/image_size"
    close = choose_image_size(size)
    assert f"take {close}" in error.detail
    assert student(32, image_size=close).image_size == close


def test_an_image_that_is_set_is_kept_where_a_patch_divides_it() -> None:
    for size in range(8, 1025):
        try:
            patch = choose_patch_size(size)
        except InvalidInput:
            continue
        chosen = student(224, image_size=size, patch_size=None)
        assert (chosen.image_size, chosen.patch_size) == (size, patch)
        assert 64 <= tokens(chosen) <= 64**2


def test_images_smaller_than_any_student_are_enlarged() -> None:
    facts = DatasetFacts(num_samples=10, num_classes=2, image_size=5, in_chans=3, synthetic=False, mirrored=True)
    plain = {"distillation": "none", "weights": {"hidden": 0.0}}
    assert TrainingSpec.resolve({"dataset": "ds", "stage_one": plain}, facts, None).student.image_size == 8
