"""Each usual mistake about a teacher's input, made on real digits, is found; without one there is no alarm."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from sklearn.metrics import top_k_accuracy_score

from dearkd.data.shard_files import Sample, Shard, write_shard
from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.vision.image_sample import ImageSample, few_shards, read_sample, sample_of_shards, spread
from dearkd.vision.images import encode
from dearkd.vision.teacher_check import TeacherCheck, check_on_images, is_clearly_better
from dearkd.vision.teachers import save_teacher
from dearkd.vision.usual_inputs import padding_twin
from tests.support.tinted_digits import NAMES, SPEC, tinted_digits, tinted_teacher, write_class_folders

pytestmark = pytest.mark.slow

SEEN = slice(600, 696)
"""Digits that the classifier was not fitted to."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tinted") / "weights.safetensors"
    save_teacher(tinted_teacher(), path)
    return path


@pytest.fixture(scope="module")
def sample() -> ImageSample:
    pixels, labels = (part[SEEN] for part in tinted_digits())
    return ImageSample(pixels, labels, [str(n) for n in range(len(labels))], NAMES)


def check(weights: Path, sample: ImageSample, **changes: Any) -> TeacherCheck:
    return check_on_images(SPEC.model_copy(update=changes), weights, sample)


@pytest.fixture(scope="module")
def right(weights: Path, sample: ImageSample) -> TeacherCheck:
    """The findings where nothing is wrong."""
    return check(weights, sample)


def test_a_correct_teacher_gets_its_figures_and_no_alarm(right: TeacherCheck, sample: ImageSample) -> None:
    found = right
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SPEC.mean, SPEC.std))
    with torch.inference_mode():
        logits = tinted_teacher()((sample.pixels / 255 - mean) / std)
        confidences, answers = logits.softmax(1).max(1)
    for k, ours in ((1, found.as_given.top1), (5, found.as_given.top5)):
        assert ours == pytest.approx(top_k_accuracy_score(sample.labels, logits, k=k, labels=range(12)))
    assert found.as_given.mean_confidence == pytest.approx(confidences.mean().item(), abs=1e-5)
    assert [answer.answer for answer in found.answers] == answers.tolist()
    assert 0.4 < found.as_given.top1 < 1  # which leaves room for a false alarm
    assert found.better == []
    assert (found.together, found.figures_together, found.own_order) == ([], None, None)
    # Eight changes and no more: the one that would change nothing is not tried.
    assert sorted(trial.kind for trial in found.trials) == [
        "channel order",
        "class order",
        *["normalisation"] * 5,
        "padding",
    ]


def test_a_wrong_normalisation_is_found(weights: Path, sample: ImageSample, right: TeacherCheck) -> None:
    found = check(weights, sample, mean=[0.0] * 3, std=[1.0] * 3)
    assert found.better[0].change == "mean and std of ImageNet"
    assert "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" in found.better[0].remedy
    assert found.better[0].figures == right.as_given
    assert found.as_given.top1 < right.as_given.top1 / 2
    assert {trial.kind for trial in found.better} == {"normalisation"}


SMALL = "test_resnet"


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network for digits of 32 px that does not refuse larger ones."""
    path = tmp_path_factory.mktemp("small") / "weights.safetensors"
    save_teacher(tinted_teacher(SMALL), path)
    return path


def enlarged(folder: Path) -> ImageSample:
    """Digits of 32 px as a teacher gets them that is said to take 64 px."""
    pixels, labels = tinted_digits()
    write_class_folders(folder, pixels[SEEN], labels[SEEN], NAMES)
    return read_sample(folder, SPEC.model_copy(update={"image_size": 64, "class_names": NAMES}), 96)


def test_images_that_are_smaller_than_said_are_tried_in_their_own_size(small_weights: Path, tmp_path: Path) -> None:
    sample = enlarged(tmp_path)
    found = check(small_weights, sample, image_size=64, architecture=SMALL)
    assert found.better[0].kind == "image size"
    assert found.better[0].change == "32 px, as these images are"
    assert "--image-size 32" in found.better[0].remedy
    assert [trial.kind for trial in found.together] == ["image size"]
    assert found.own_order is None
    assert sample.own_pixels is not None
    in_own_size = check(small_weights, replace(sample, pixels=sample.own_pixels, own_pixels=None), architecture=SMALL)
    assert found.better[0].figures == in_own_size.as_given


def test_an_order_of_their_own_is_found_behind_a_wrong_size(small_weights: Path, tmp_path: Path) -> None:
    sample = enlarged(tmp_path)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    confused = replace(sample, labels=order[sample.labels])
    found = check(small_weights, confused, image_size=64, architecture=SMALL)
    assert [trial.kind for trial in found.together] == ["image size"]
    assert found.own_order is not None
    assert sum(found.own_order[str(order[label].item())] == label for label in range(12)) >= 9


def test_only_images_of_one_size_that_is_smaller_have_their_own(tmp_path: Path) -> None:
    assert read_sample(write_class_folders(tmp_path, *tinted_digits(), NAMES), SPEC, 24).own_pixels is None
    sides = SPEC.model_copy(update={"image_size": 64})
    found = read_sample(tmp_path, sides, 24).own_pixels
    assert found is not None
    assert found.shape == (24, 3, 32, 32)
    Image.new("RGB", (40, 40)).save(tmp_path / "0" / "0000-other.png")
    assert read_sample(tmp_path, sides, 24).own_pixels is None


def test_channels_in_another_order_are_found(weights: Path, sample: ImageSample, right: TeacherCheck) -> None:
    found = check(weights, replace(sample, pixels=sample.pixels.flip(1)))
    assert [trial.change for trial in found.better] == ["BGR in place of RGB"]
    assert found.better[0].figures == right.as_given


def test_other_padding_is_found_in_the_architecture_that_takes_the_same_weights(
    weights: Path, sample: ImageSample, right: TeacherCheck
) -> None:
    found = check(weights, sample, architecture="mobilenetv3_small_075")
    assert [trial.kind for trial in found.better] == ["padding"]
    assert "--architecture tf_mobilenetv3_small_075" in found.better[0].remedy
    assert found.better[0].figures == right.as_given
    assert padding_twin("efficientnet_lite0") == "tf_efficientnet_lite0"
    assert padding_twin("tf_efficientnet_lite0") == "efficientnet_lite0"
    assert padding_twin("resnet18") is None


def test_classes_in_another_usual_order_are_found_and_with_them_a_second_mistake(
    weights: Path, sample: ImageSample, right: TeacherCheck
) -> None:
    by_name = sorted(NAMES)
    labels = torch.tensor([by_name.index(NAMES[label]) for label in sample.labels])
    found = check(weights, replace(sample, labels=labels, class_names=by_name), mean=[0.5] * 3, std=[0.5] * 3)
    assert found.better[0].change == "classes in natural order, as timm sorts them"
    assert "--class-order natural" in found.better[0].remedy
    assert [trial.change for trial in found.together] == [found.better[0].change, "mean and std of ImageNet"]
    assert found.figures_together == right.as_given
    assert found.own_order is None


def test_two_mistakes_that_hide_each_other_are_found(weights: Path, sample: ImageSample, right: TeacherCheck) -> None:
    by_name = sorted(NAMES)
    labels = torch.tensor([by_name.index(NAMES[label]) for label in sample.labels])
    confused = replace(sample, labels=labels, class_names=by_name)
    backwards = replace(sample, pixels=sample.pixels.flip(1))
    for changed, kinds in (
        (confused, ["normalisation", "class order"]),
        (backwards, ["normalisation", "channel order"]),
    ):
        found = check(weights, changed, mean=[0.0] * 3, std=[1.0] * 3)
        assert found.better == []
        assert [trial.kind for trial in found.together] == kinds
        assert found.figures_together == right.as_given


def test_classes_in_no_usual_order_are_found_by_the_answers(weights: Path, sample: ImageSample) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    found = check(weights, replace(sample, labels=order[sample.labels]))
    assert found.own_order is not None
    assert found.figures_own_order is not None
    back = {name: int((order == int(name)).nonzero()) for name in found.own_order}
    assert sum(found.own_order[name] == label for name, label in back.items()) >= 9
    assert found.figures_own_order.top1 > 2 * found.as_given.top1


@pytest.mark.parametrize(
    ("won", "lost", "of", "clear"),
    [(9, 0, 20, True), (8, 0, 20, False), (30, 8, 100, True), (30, 20, 100, False), (20, 0, 1000, False)],
)
def test_a_gain_is_clear_where_it_is_large_and_no_chance(won: int, lost: int, of: int, clear: bool) -> None:
    before = torch.arange(of) < lost
    after = (torch.arange(of) >= lost) & (torch.arange(of) < lost + won)
    assert is_clearly_better(before, after) is clear


def test_images_are_spread_over_classes_and_files(tmp_path: Path) -> None:
    pixels, labels = tinted_digits()
    folder = write_class_folders(tmp_path, pixels[:120], labels[:120], NAMES)
    (folder / "3" / "notes.png.txt").write_text("no image")
    large = Image.fromarray(np.full((40, 80, 3), 7, dtype=np.uint8))
    large.save(folder / "0" / "0000-large.png")
    found = read_sample(folder, SPEC.model_copy(update={"class_names": NAMES}), 24)
    assert found.pixels.shape == (24, 3, 32, 32)
    assert found.pixels.dtype == torch.uint8
    assert torch.bincount(found.labels).tolist() == [2] * 12
    assert all(Path(name).parts[0] == NAMES[label] for name, label in zip(found.names, found.labels, strict=True))
    assert spread([5, 0, 1, 9], 9) == [4, 0, 1, 4]
    assert spread([5, 5, 5, 5], 2) == [1, 0, 1, 0]
    assert spread([1, 2], 99) == [1, 2]


def test_an_uncertain_order_is_assumed_and_said(tmp_path: Path) -> None:
    pixels, labels = tinted_digits()
    found = read_sample(write_class_folders(tmp_path, pixels[:120], labels[:120], NAMES), SPEC, 12)
    assert list(found.class_names) == sorted(NAMES)
    assert "by name" in found.remarks[0]


def test_shards_are_read_as_folders_are(tmp_path: Path) -> None:
    pixels, labels = tinted_digits()
    entries = []
    for number, part in enumerate((slice(0, 100), slice(100, 200))):
        images = zip(pixels[part], labels[part].tolist(), strict=True)
        samples = (
            Sample(f"{n:03d}", encode(image, "png"), "png", label, {}) for n, (image, label) in enumerate(images)
        )
        entries.append(write_shard(tmp_path / f"{number}.tar", samples))
    found = read_sample(tmp_path, SPEC, 36)
    assert torch.bincount(found.labels).tolist() == [3] * 12
    assert found.remarks == []
    backwards = SPEC.model_copy(update={"class_names": NAMES[::-1]})
    assert "another order" in sample_of_shards([tmp_path / "0.tar"], backwards, 36, NAMES).remarks[0]
    first = few_shards(entries, 36)
    assert [shard.name for shard in first] == ["0.tar"]
    same = sample_of_shards([tmp_path / "0.tar"], SPEC, 36, NAMES)
    assert torch.bincount(same.labels).tolist() == [3] * 12
    assert few_shards([Shard(name="a", bytes=1, sha256="", samples=1, classes={0: 1}), *entries], 2)[0].name == "a"


@pytest.mark.parametrize(
    ("names", "named"),
    [(["0", "1"], "2 classes, but tinted tells 12 apart"), ([], "neither .*shards nor class folders")],
)
def test_other_classes_and_an_empty_folder_are_one_line(tmp_path: Path, names: list[str], named: str) -> None:
    pixels, _ = tinted_digits()
    for name in names:
        write_class_folders(tmp_path, pixels[:1], torch.tensor([0]), [name])
    with pytest.raises((InvalidInput, typer.BadParameter), match=named) as caught:
        read_sample(tmp_path, SPEC, 8)
    assert "\n" not in str(caught.value)


def test_damaged_images_and_folders_without_images_are_named(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
    teacher = TeacherSpec(**SPEC.model_dump() | {"class_names": NAMES})
    with pytest.raises(InvalidInput, match="no image in its 12 class folders"):
        read_sample(tmp_path, teacher, 8)
    data = encode(tinted_digits()[0][0], "png")
    (tmp_path / "4" / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(typer.BadParameter, match=r"cut\.png is not a readable image"):
        read_sample(tmp_path, teacher, 8)
    with pytest.raises(InvalidInput, match="no folder on this machine"):
        read_sample(tmp_path / "none", teacher, 8)
