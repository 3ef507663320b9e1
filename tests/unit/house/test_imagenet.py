"""The page on ImageNet: its specs are taken as they stand, and its figures follow from them."""

import json
import re
from typing import Any

import pytest

from dearkd.specs import DatasetFacts, SynthesisSpec, TeacherSpec, TrainingSpec
from tests.support.documents import blocks, read, table

PAGE = read("docs/imagenet.md")
FEW, MANY, STUDENT, WITH_IMAGES = (json.loads(block) for block in blocks(PAGE, "json"))
TEACHER = TeacherSpec(
    name="TEACHER",
    architecture="resnet50",
    num_classes=1000,
    in_chans=3,
    image_size=224,
    mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
)


def facts(images: int, *, synthetic: bool) -> DatasetFacts:
    return DatasetFacts(
        num_samples=images,
        num_classes=1000,
        image_size=224 if synthetic else None,
        in_chans=3,
        synthetic=synthetic,
        mirrored=None,
        teacher="TEACHER" if synthetic else None,
    )


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.parametrize(("posted", "row"), [(FEW, 0), (MANY, 1), (FEW, 2), (MANY, 3)])
def test_a_synthesis_is_what_the_table_says(posted: dict[str, Any], row: int) -> None:
    name, *figures = table(PAGE, "What it is")[row]
    preset = {"preset": "published-imagenet"} if "`published-imagenet`" in name else {}
    spec = SynthesisSpec.resolve({**posted, **preset}, TEACHER)
    found = (spec.num_samples, spec.num_shards, spec.teacher_passes, spec.estimated_bytes(TEACHER))
    assert found == tuple(number(figure) for figure in figures)
    assert name.startswith(f"{spec.num_samples:,} images")
    full = sum(phase.iterations * (phase.input_size / 224) ** 2 for phase in spec.phases)
    assert full == (1500 if preset else 125), "hours count passes of smaller images by their pixels"


@pytest.mark.parametrize(
    ("posted", "data"),
    [
        (STUDENT, facts(140_000, synthetic=True)),
        (STUDENT, facts(1_000_000, synthetic=True)),
        (WITH_IMAGES, facts(1_281_167, synthetic=False)),
    ],
)
def test_a_run_is_dearkd_ti_for_300_epochs(posted: dict[str, Any], data: DatasetFacts) -> None:
    spec = TrainingSpec.resolve(posted, data, TEACHER)
    assert spec.student.architecture == "dearkd_tiny_patch16_224"
    assert (spec.stage_one.epochs, spec.stage_two.epochs, spec.batch_size) == (250, 50, 1024)
    assert (spec.holdout, spec.needs_teacher, spec.processes) == (0.05, True, 8)


def test_storage_and_bandwidth_follow_from_sizes() -> None:
    """A tar has each image's file and its metadata: three records of 512 bytes more than the pixels, at the least."""
    rows = {row[0]: row[1:] for row in table(PAGE, "Storage and bandwidth")}
    specs = [SynthesisSpec.resolve(posted, TEACHER) for posted in (FEW, MANY)]
    sizes = [spec.estimated_bytes(TEACHER) for spec in specs]
    each = sizes[0] / specs[0].num_samples
    cached = dict(rows)["a trainer's cache, to hold all"]
    assert [f"{size / 1e9:.0f} GB" for size in sizes] == rows["the set in storage"][:2] == cached[:2]
    uploads = next(cells for name, cells in rows.items() if "uploads, at 12 images a second" in name)
    assert uploads[:2] == [f"{12 * each / 1e6:.1f} MB/s"] * 2
    assert rows["its disk: one shard at a time"][:2] == [f"{specs[0].shard_samples * each / 1e6:.0f} MB"] * 2
    # A GPU that takes each image through the student (2,500 a second) and the teacher (5,000).
    (name,) = (name for name in rows if name.startswith("where it does not"))
    assert f"at {1 / (1 / 2500 + 1 / 5000):,.0f} images a second" in name
    rate = 1 / (1 / 2500 + 1 / 5000)
    imagenet = float(rows["the set in storage"][2].removesuffix(" GB")) * 1e9 / 1_281_167
    assert rows[name] == ["–", f"{rate * each / 1e6:.0f} MB/s", f"{rate * imagenet / 1e6:.0f} MB/s"]


def test_the_hours_follow_from_their_arithmetic() -> None:
    rows = table(PAGE, "Hours of a GPU, estimated")
    assert len(rows) == 7
    for name, arithmetic, hours in rows:
        plain = arithmetic.replace(",", "").replace("×", "*")
        assert re.fullmatch(r"[\d.*/+() ]+", plain), name
        assert round(eval(plain), 1) == float(hours), name  # digits and operators alone, as was just checked
        if "`published" not in name and "student" not in name:
            assert plain.split()[0] in {str(number(row[3])) for row in table(PAGE, "What it is")}
