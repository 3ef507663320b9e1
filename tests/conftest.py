"""Fixtures that several areas share."""

import os
from pathlib import Path

import pytest

from dearkd.imports import import_large
from dearkd.specs import TeacherSpec
from tests.support.s3 import s3

__all__ = ["s3"]

# Else every run that a test makes would be shown in TensorBoard's files, in the folder that the tests were started in.
os.environ.setdefault("DEARKD_METRICS_SINKS", "")


def pytest_configure(config: pytest.Config) -> None:
    """Import what nearly all tests need, and first what makes timm importable; not where xdist only hands out tests."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        for name in ("dearkd.vision", "timm", "torch._dynamo"):
            import_large(name)


WORLDS = ("shared_world", "patient_world", "s3")
"""Fixtures that take long to build, and belong to a session: who uses one runs in one process of pytest-xdist's."""


def group(item: pytest.Item) -> str:
    """The world that a test needs, asked for as a fixture or by its name as a parameter's value; or else its file."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    asked = {*getattr(item, "fixturenames", ()), *(value for value in parameters if isinstance(value, str))}
    return next((name for name in WORLDS if name in asked), item.nodeid.partition("::")[0])


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell `--dist=loadgroup` which tests belong together."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[TeacherSpec, Path]:
    """A resnet10t that knows most handwritten digits (1×32×32), trained once a session: its spec and safetensors file.

    Half of the digits do: it names six of seven that it has not seen.
    """
    from dearkd_trainer.demo.digits import Digits, real_digits, train_teacher

    weights = tmp_path_factory.mktemp("digits-teacher") / "weights.safetensors"
    train, _ = real_digits()
    spec, _ = train_teacher(Digits(train.images[:640], train.labels[:640]), weights, seed=0, epochs=3)
    return spec, weights


@pytest.fixture(scope="session")
def plain_teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[TeacherSpec, Path]:
    """A resnet10t that has learnt nothing: whether a job is lost does not depend on that."""
    import timm
    import torch
    from safetensors.torch import save_file

    spec = TeacherSpec(
        name="untrained", architecture="resnet10t", num_classes=10, in_chans=1, image_size=32, mean=[0.5], std=[0.5]
    )
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    path = tmp_path_factory.mktemp("plain-teacher") / "weights.safetensors"
    save_file(model.state_dict(), path)
    return spec, path
