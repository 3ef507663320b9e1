"""Checkpoints of torch: every wrapper that trainers put around weights, and what is no weights."""

import argparse
import collections
import datetime
import os
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.teacher_files import CLASSES, SMALL, Add, difference, plain, prefixed, rebuilt, refusal, small

MODEL = small()
STATE = plain(MODEL)
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def averaged() -> dict[str, Tensor]:
    return dict(torch.optim.swa_utils.AveragedModel(MODEL).state_dict())


WRAPPED: dict[str, tuple[Any, list[str]]] = {
    "plain": (STATE, []),
    "state_dict": ({"state_dict": STATE, "epoch": 3}, ["'state_dict'"]),
    "model": ({"model": STATE, "optimizer": {"state": {}, "param_groups": []}}, ["'model'"]),
    "average": ({"state_dict": OTHER, "state_dict_ema": STATE}, ["'state_dict_ema'", "--state-dict state_dict takes"]),
    "torchvision's": ({"model": OTHER, "model_ema": averaged()}, ["'model_ema'", "'module'", "n_averaged"]),
    "data parallel": (nn.DataParallel(MODEL).state_dict(), ["'module'"]),
    "compiled and parallel": (prefixed("module._orig_mod.", STATE), ["'module'", "'_orig_mod'"]),
    "lightning": (
        {"state_dict": prefixed("model.", STATE) | {"criterion.weight": torch.ones(CLASSES)}, "loops": {}},
        ["'model'", "left out 'criterion.weight'"],
    ),
    "two parts": (
        {f"{'' if name.startswith('fc') else 'backbone.'}{name}": tensor for name, tensor in STATE.items()},
        ["'backbone'"],
    ),
    "mmpretrain": (
        {"state_dict": {f"{'head.' if n.startswith('fc') else 'backbone.'}{n}": t for n, t in STATE.items()}},
        ["'backbone'", "'head'"],
    ),
    "beside what trainers keep": (
        {
            "state_dict": STATE,
            "args": argparse.Namespace(folder=pathlib.Path("/data"), rate=0.1),
            "best": np.float64(0.9),
            "history": np.zeros(3),
            "counts": collections.defaultdict(list, {"a": [1]}),
            "at": datetime.datetime(2026, 1, 1),
        },
        ["'state_dict'"],
    ),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_weights_are_found_under_every_wrapper_and_it_is_said(add: Add, case: str) -> None:
    value, said = WRAPPED[case]
    found = add(value, image_size=32)
    assert found.body["architecture"] == SMALL
    assert found.body["num_classes"] == CLASSES
    assert difference(rebuilt(found), MODEL, 32) == 0
    assert all(word in found.remarks[0] for word in said), found.remarks


def test_the_old_format_of_torch_is_read_too(add: Add, tmp_path: Path) -> None:
    path = tmp_path / "old.pth.tar"
    torch.save({"state_dict": STATE, "best": np.float32(1)}, path, _use_new_zipfile_serialization=False)
    assert difference(rebuilt(add(path)), MODEL, 32) == 0


def test_channels_last_and_tied_and_half_precision_weights_are_written_all_the_same(add: Add) -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in STATE.items()}
    state = {name: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for name, t in state.items()}
    state["bn1.bias"] = state["bn1.running_mean"] = torch.zeros(2, *state["bn1.bias"].shape)[1].half()
    found = add(state)
    assert difference(rebuilt(found), MODEL, 32) > 0
    assert {t.dtype for t in rebuilt(found).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("value", "choices"),
    [
        ({"generator": OTHER, "discriminator": STATE}, ["generator", "discriminator"]),
        ({"model": OTHER, "net": STATE}, ["model", "net"]),
        ({"nets": {"a": OTHER, "b": STATE}}, ["nets.a", "nets.b"]),
        (prefixed("student.", OTHER) | prefixed("teacher.", STATE), ["student", "teacher"]),
        ({"state_dict": prefixed("model.", OTHER) | prefixed("ema.", STATE)}, ["model", "ema"]),
    ],
)
def test_of_two_networks_both_are_named_and_either_can_be_chosen(add: Add, value: Any, choices: list[str]) -> None:
    said = refusal(lambda: add(value))
    assert "--state-dict" in said
    assert all(choice in said for choice in choices)
    for choice, wanted in zip(choices, (OTHER, STATE), strict=True):
        for key in (choice, f"state_dict.{choice}") if "state_dict" in value else (choice,):
            state = rebuilt(add(value, state_dict=key)).state_dict()
            assert all(torch.equal(tensor, wanted[name]) for name, tensor in state.items())
    assert "generater" in refusal(lambda: add(value, state_dict="generater"))


class Writes:
    """Unpickled by Python, it opens a file for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


class Runs(Writes):
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Numbers(Writes):
    """Pretends to be of a module whose objects are passed over."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.save, (str(self.path), 1)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("kind", "named"), [(Writes, "open"), (Runs, "system")])
@pytest.mark.parametrize("beside", [True, False])
def test_pickled_code_is_named_and_never_run(
    add: Add, tmp_path: Path, kind: type[Writes], named: str, beside: bool, zipped: bool
) -> None:
    harm = kind(tmp_path / "harm")
    torch.save({**STATE, "x": harm} if beside else harm, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    said = refusal(lambda: add(tmp_path / "x.pt"))
    assert named in said
    assert "state_dict()" in said
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / "x.pt", weights_only=False)  # else the test would prove nothing
    assert (tmp_path / "harm").exists()


def test_what_is_passed_over_is_not_run_either(add: Add, tmp_path: Path) -> None:
    found = add({"state_dict": STATE, "x": Numbers(tmp_path / "harm")})
    assert found.body["architecture"] == SMALL
    assert not list(tmp_path.glob("harm*"))


def test_a_whole_pickled_model_is_refused_by_its_class(add: Add) -> None:
    assert "timm.models.resnet.ResNet" in refusal(lambda: add(MODEL))


def test_an_optimiser_alone_is_called_one(add: Add) -> None:
    optimiser = torch.optim.AdamW(MODEL.parameters())
    MODEL(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimiser.step()
    for value in (optimiser.state_dict(), {"optimizer": optimiser.state_dict(), "epoch": 1}):
        said = refusal(lambda value=value: add(value))
        assert "holds no weights" in said
        assert "optimiser" in said


@pytest.mark.parametrize("value", [{}, [1, 2], torch.zeros(3), {"epoch": 1}])
def test_other_values_hold_no_weights(add: Add, value: Any) -> None:
    assert "holds no weights" in refusal(lambda: add(value))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_called_so(add: Add, tmp_path: Path, zipped: bool, kept: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert "cut short or damaged" in refusal(lambda: add(path))


def test_a_damaged_index_of_tensors_is_no_advice_to_run_code(add: Add, tmp_path: Path) -> None:
    path = tmp_path / "flipped.pth"
    torch.save(STATE, path)
    data = bytearray(path.read_bytes())
    data[4000:6000] = bytes(2000)
    path.write_bytes(data)
    said = refusal(lambda: add(path))
    assert "cut short or damaged" in said
    assert "weights_only" not in said


def test_weights_without_batch_norm_are_refused_by_what_they_hold(add: Add) -> None:
    state = {name: t for name, t in STATE.items() if "bn" not in name and "downsample.1" not in name}
    said = refusal(
        lambda: add({"conv1.weight": torch.zeros(8, 3, 3, 3), **{n: t for n, t in state.items() if t.dim() > 1}})
    )
    assert "running_mean" in said
    assert "BatchNorm" in said
