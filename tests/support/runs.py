"""The smallest run that still has everything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import timm
import torch
from torch import nn

from dearkd.data.shard_files import Sample, write_shard
from dearkd.specs import DatasetFacts, TrainingSpec
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset
from dearkd_trainer import DearKDTrainer, FrozenTeacher
from tests.support.bars import CLASSES, SIDE, TASK, TEACHER, MakeSpec, bars


@pytest.fixture(scope="session")
def bar_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bars") / "train-000000.tar"
    write_shard(path, (Sample(f"{n:04d}", encode(x, "png"), "png", y, {}) for n, (x, y) in enumerate(bars(60))))
    return path


@pytest.fixture
def dataset(bar_shard: Path) -> ShardDataset:
    return ShardDataset([bar_shard], num_classes=CLASSES, in_chans=1)


@pytest.fixture
def teacher() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = timm.create_model("resnet10t", num_classes=CLASSES, in_chans=1)
    return model.eval()


@pytest.fixture
def make_spec() -> MakeSpec:
    """A resolved spec: two epochs of stage one, two of stage two, everything on; objects given are merged in."""

    def make(**posted: Any) -> TrainingSpec:
        body: dict[str, Any] = {
            "dataset": "bars",
            "batch_size": 16,
            "holdout": 0.1,
            "workers": 0,
            "eval_every": 1,
            "checkpoint_every": 1,
            "student": {
                "patch_size": 4,
                "embed_dim": 16,
                "depth": 2,
                "num_heads": 2,
                "mhca_blocks": 1,
                "drop_path_rate": 0.2,
            },
            "stage_one": {"epochs": 2, "distillation": "soft"},
            "stage_two": {"epochs": 2},
            "optimizer": {"lr": 3e-3, "warmup_epochs": 1},
            "augmentation": {"mixup": 0.5},
        }
        for name, value in posted.items():
            body[name] = body.get(name, {}) | value if isinstance(value, dict) else value
        facts = DatasetFacts(
            num_samples=60,
            num_classes=CLASSES,
            image_size=SIDE,
            in_chans=1,
            synthetic=True,
            mirrored=False,
            teacher="t",
        )
        return TrainingSpec.resolve(body, facts, TEACHER)

    return make


@pytest.fixture
def make_trainer(dataset: ShardDataset, teacher: nn.Module, tmp_path: Path) -> Callable[..., DearKDTrainer]:
    def make(spec: TrainingSpec, **changes: Any) -> DearKDTrainer:
        arguments: dict[str, Any] = {
            "directory": tmp_path / "run",
            "task": TASK.at(spec.student.image_size),
            "teacher": FrozenTeacher(teacher, TEACHER),
        }
        return DearKDTrainer(spec, changes.pop("dataset", dataset), **(arguments | changes))

    return make
