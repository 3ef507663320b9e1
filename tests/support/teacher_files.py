"""Files of trained networks, as the libraries write them, for the tests of `dearkd.teacher_files`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import pytest
import timm
import torch
from torch import Tensor, nn

from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.teacher_files.intake import TeacherFile, read_teacher
from dearkd.vision.teachers import load_teacher

CLASSES = 5
SMALL = "test_resnet"
"""The smallest network of timm that no other shares its names and shapes with."""

Add = Callable[..., TeacherFile]


def trained(model: nn.Module) -> nn.Module:
    """The network in eval mode, with weights and statistics of its BatchNorm layers as no two layers have them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for values, low, high in ((layer.weight, 0.8, 1.2), (layer.bias, -0.1, 0.1)):
                    values.uniform_(low, high, generator=generator)
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.uniform_(-0.1, 0.1, generator=generator)
                layer.running_var.uniform_(0.8, 1.2, generator=generator)
    return model.eval()


def small() -> nn.Module:
    torch.manual_seed(0)
    return trained(timm.create_model(SMALL, num_classes=CLASSES))


def plain(model: nn.Module) -> dict[str, Tensor]:
    """The state as a plain dict, which does not tell the modules' names."""
    return dict(model.state_dict())


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, side: int) -> float:
    """The largest difference of two networks' logits on noise, as a share of their standard deviation."""
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    wanted = theirs(noise)
    wanted = getattr(wanted, "logits", wanted)
    return float((ours(noise) - wanted).abs().max() / wanted.std())


@pytest.fixture
def add(tmp_path: Path) -> Add:
    """Reads a file or folder, or what `torch.save` makes of an object, with these fields given."""

    def add(source: Any, *, state_dict: str | None = None, **given: Any) -> TeacherFile:
        path = source
        if not isinstance(source, Path):
            path = tmp_path / "best.pth"
            torch.save(source, path)
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        return read_teacher(path, {"name": "t", **given}, scratch, state_dict=state_dict)

    return add


def rebuilt(found: TeacherFile) -> nn.Module:
    """The teacher as a worker loads it."""
    return load_teacher(TeacherSpec.check(found.body), found.weights)


def refusal(act: Callable[[], object]) -> str:
    """The message of the refusal: one line."""
    with pytest.raises(InvalidInput) as caught:
        act()
    assert "\n" not in caught.value.message
    return caught.value.message
