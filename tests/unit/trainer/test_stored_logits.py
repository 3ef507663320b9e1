"""Stage one from the logits that lie beside the images: the same losses, and no teacher."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import InvalidInput
from dearkd.specs import DatasetFacts, TrainingSpec
from dearkd.vision.images import encode, to_input
from dearkd.vision.shards import ShardDataset
from tests.support.bars import CLASSES, SIDE, STEPS, TEACHER, MakeTrainer, bars, stop_at

pytestmark = pytest.mark.slow

FACTS = DatasetFacts(
    num_samples=60,
    num_classes=CLASSES,
    image_size=SIDE,
    in_chans=1,
    synthetic=True,
    mirrored=True,
    teacher="t",
    stored_logits=True,
)
STORED: dict[str, Any] = {"teacher_logits": "stored"}


def resolve(facts: DatasetFacts = FACTS, **posted: Any) -> TrainingSpec:
    body: dict[str, Any] = {
        "dataset": "bars",
        "batch_size": 16,
        "holdout": 0.1,
        "workers": 0,
        "student": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mhca_blocks": 1},
        "stage_one": {"epochs": 2} | STORED,
        "stage_two": {"epochs": 1},
        "optimizer": {"lr": 3e-3, "warmup_epochs": 1},
    }
    for name, value in posted.items():
        body[name] = body.get(name, {}) | value if isinstance(value, dict) else value
    return TrainingSpec.resolve(body, facts, TEACHER if facts.teacher else None)


def computed(spec: TrainingSpec) -> TrainingSpec:
    return spec.model_copy(update={"stage_one": spec.stage_one.model_copy(update={"teacher_logits": "computed"})})


@pytest.fixture
def with_logits(teacher: nn.Module, tmp_path: Path) -> Callable[..., ShardDataset]:
    """The bars with the teacher's logits beside them."""

    def make(dtype: str = "float32", without: int | None = None) -> ShardDataset:
        made = bars(60)
        with torch.no_grad():
            logits = teacher(to_input(torch.stack([image for image, _ in made]), TEACHER)).numpy().astype(dtype)
        samples = []
        for n, (image, label) in enumerate(made):
            file = io.BytesIO()
            np.save(file, logits[n])
            arrays = {} if n == without else {"logits.npy": file.getvalue()}
            samples.append(Sample(f"{n:04d}", encode(image, "png"), "png", label, {}, arrays))
        path = tmp_path / "with-logits.tar"
        write_shard(path, samples)
        return ShardDataset([path], num_classes=CLASSES, in_chans=1)

    return make


@pytest.mark.parametrize("distillation", ["soft", "hard"])
@pytest.mark.parametrize("parts", [1, 2])
def test_losses_are_those_of_asking_the_teacher(
    make_trainer: MakeTrainer,
    with_logits: Callable[..., ShardDataset],
    tmp_path: Path,
    distillation: str,
    parts: int,
) -> None:
    spec = resolve(stage_one={"distillation": distillation}, grad_accum_steps=parts)
    data = with_logits()
    asked = make_trainer(computed(spec), dataset=data, directory=tmp_path / "asked").fit().history
    read = make_trainer(spec, dataset=data, teacher=None).fit().history
    assert [set(row) - {"teacher_share"} for row in asked] == [set(row) for row in read]
    assert "distillation" in read[0]
    for theirs, ours in zip(asked, read, strict=True):
        for name in {"loss", "distillation", "classification"} & set(ours):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


def test_half_precision_is_near_and_a_restart_changes_nothing(
    make_trainer: MakeTrainer, with_logits: Callable[..., ShardDataset], tmp_path: Path
) -> None:
    data, spec = with_logits("float16"), resolve(workers=1)
    asked = make_trainer(computed(spec), dataset=data, directory=tmp_path / "asked").fit().history
    whole = make_trainer(spec, dataset=data, teacher=None).fit().history
    assert whole[0]["distillation"] == pytest.approx(asked[0]["distillation"], rel=2e-2)
    cut = {"dataset": data, "teacher": None, "directory": tmp_path / "cut"}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(spec.model_copy(update={"checkpoint_every": 1}), on_step=stop_at(STEPS + 2), **cut).fit()
    again = make_trainer(spec.model_copy(update={"checkpoint_every": 1}), **cut).fit().history
    assert [row["loss"] for row in again] == [row["loss"] for row in whole]


def test_one_image_without_logits_is_one_too_few(
    make_trainer: MakeTrainer, with_logits: Callable[..., ShardDataset]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_trainer(resolve(), dataset=with_logits(without=7), teacher=None)
    assert caught.value.errors[0].pointer == "/stage_one/teacher_logits"


def test_defaults_leave_the_pixels_alone_and_need_no_teacher() -> None:
    spec = resolve()
    assert not spec.needs_teacher
    assert spec.stage_one.weights.hidden == 0
    kept = spec.augmentation
    assert (kept.hflip, kept.degrees, kept.translate, kept.shear, kept.scale) == (0, 0, 0, 0, [1, 1])
    assert kept.smoothing > 0
    assert resolve(replace(FACTS, teacher=None)).teacher is None


@pytest.mark.parametrize(
    ("facts", "posted", "pointers"),
    [
        ({"stored_logits": False}, {}, ["/stage_one/teacher_logits"]),
        ({}, {"teacher": "another"}, ["/teacher"]),
        ({}, {"stage_one": {"distillation": "none"}}, ["/stage_one/teacher_logits"]),
        ({}, {"stage_one": {"weights": {"hidden": 0.2}}}, ["/stage_one/weights/hidden"]),
        ({}, {"augmentation": {"hflip": 0.5, "mixup": 0.8}}, ["/augmentation/hflip", "/augmentation/mixup"]),
        ({}, {"augmentation": {"scale": [0.5, 1.0], "aa": "rand-m9"}}, ["/augmentation/scale", "/augmentation/aa"]),
    ],
)
def test_what_stored_logits_cannot_serve_is_refused(
    facts: dict[str, Any], posted: dict[str, Any], pointers: list[str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve(replace(FACTS, **facts), **posted)
    assert [error.pointer for error in caught.value.errors] == pointers
