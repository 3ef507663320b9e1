"""Small teachers of many families, with random weights and statistics of some data."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dearkd.specs import TeacherSpec
from dearkd.vision.teachers import build_teacher
from tests.support.families import FAMILIES

MakeTeacher = Callable[..., tuple[nn.Module, TeacherSpec]]


def small_teacher(
    architecture: str = "test_resnet",
    *,
    in_chans: int = 3,
    image_size: int = 32,
    num_classes: int = 5,
    seed: int = 0,
    model_args: dict[str, Any] | None = None,
) -> tuple[nn.Module, TeacherSpec]:
    """A teacher in eval mode whose running statistics are those of noise, as training on noise would leave them."""
    spec = TeacherSpec.check(
        {
            "name": architecture,
            "architecture": architecture,
            "model_args": model_args or {},
            "num_classes": num_classes,
            "in_chans": in_chans,
            "image_size": image_size,
            "mean": [0.4] * in_chans,
            "std": [0.25] * in_chans,
        }
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build_teacher(spec).train()
        for _ in range(3):
            model(torch.randn(8, in_chans, image_size, image_size))
    return model.eval(), spec


@pytest.fixture(name="small_teacher", scope="session")
def _small_teacher() -> MakeTeacher:
    return small_teacher


@pytest.fixture(params=list(FAMILIES), scope="session")
def family_teacher(request: pytest.FixtureRequest) -> tuple[nn.Module, TeacherSpec]:
    """A teacher of each family, at 32 px. Not to be changed."""
    return small_teacher(request.param, model_args=FAMILIES[request.param])
