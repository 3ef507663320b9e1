"""Files that are no weights, or none that are taken, each refused by what it is."""

import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dearkd.teacher_files.file_kinds import kind_of
from tests.support.teacher_files import plain, refusal, small


@pytest.mark.slow
def test_onnx_files_are_refused_because_batch_norm_is_gone(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    torch.onnx.export(small(), (torch.zeros(1, 3, 32, 32),), tmp_path / "m.onnx", dynamo=False)
    (tmp_path / "renamed.bin").write_bytes((tmp_path / "m.onnx").read_bytes())
    for path in (tmp_path / "m.onnx", tmp_path / "renamed.bin"):
        said = refusal(lambda path=path: kind_of(path))
        assert "ONNX" in said
        assert "BatchNorm" in said


@pytest.mark.slow
def test_archives_of_torch_export_are_refused_as_unsafe(tmp_path: Path) -> None:
    program = torch.export.export(small(), (torch.zeros(2, 3, 32, 32),))
    torch.export.save(program, tmp_path / "m.pt2")
    said = refusal(lambda: kind_of(tmp_path / "m.pt2"))
    assert "torch.export" in said
    assert "not safe" in said


def test_torchscript_archives_are_refused_as_code(tmp_path: Path) -> None:
    traced = torch.jit.trace(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 1, 1))
    torch.jit.save(traced, tmp_path / "m.pt")
    assert "TorchScript" in refusal(lambda: kind_of(tmp_path / "m.pt"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(100), "TFLite"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"hello", "no file of weights"),
        (b"PK\x03\x04 and then nothing", "cut short or damaged"),
    ],
)
def test_what_is_no_file_of_weights_is_said_to_be_none(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    said = refusal(lambda: kind_of(path))
    assert named in said
    assert str(path) in said


def test_archives_of_other_things_are_named_by_what_is_in_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("photo.png", b"")
    assert "photo.png" in refusal(lambda: kind_of(tmp_path / "a.zip"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.zip")
    assert "unpack" in refusal(lambda: kind_of(tmp_path / "a.tar"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w"])
def test_files_are_known_by_their_beginning_and_not_by_their_name(tmp_path: Path, name: str) -> None:
    save_file(plain(small()), tmp_path / name)
    assert kind_of(tmp_path / name) == "safetensors"
    torch.save(plain(small()), tmp_path / name)
    assert kind_of(tmp_path / name) == "pickle"
