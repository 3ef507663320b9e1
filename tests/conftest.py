"""Fixtures that several areas share."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from dearkd.imports import import_large
from dearkd.specs import TeacherSpec
from tests.support.s3 import S3Server, s3
from tests.support.seaweedfs import seaweed

__all__ = ["s3", "seaweed"]

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("dearkd", deadline=None)
settings.load_profile("dearkd")

# Else every run that a test makes would be shown in TensorBoard's files, in the folder that the tests were started in.
os.environ.setdefault("DEARKD_METRICS_SINKS", "")


def pytest_configure(config: pytest.Config) -> None:
    """Import what nearly all tests need, and first what makes timm importable; not where xdist only hands out tests."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        for name in ("dearkd.vision", "timm", "torch._dynamo"):
            import_large(name)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share out whole files, and those together that need the same tree of processes, browser or S3 server.

    `--dist=loadgroup` would let tests say so themselves, but pytest-xdist 3.8 does not do that under pytest 9.2.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Worlds(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if "s3.py" in file or "[s3]" in nodeid:
                return "s3"
            if "[seaweed]" in nodeid:
                return "seaweed"
            if file.startswith("tests/services/dashboard/"):
                return "tests/services/dashboard"
            return "tests/faults" if file.startswith("tests/faults/") and "test_listener" not in file else file

    return Worlds(config, log)


@pytest.fixture(params=["s3", "seaweed"])
def each_s3(request: pytest.FixtureRequest) -> S3Server:
    """Each S3 server in turn: Swift, and SeaweedFS."""
    server: S3Server = request.getfixturevalue(request.param)
    return server


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
