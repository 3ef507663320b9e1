"""Files that come from another machine over a run's connection."""

import io
from pathlib import Path

import pytest

from dearkd.errors import CorruptData, DiskFull, FieldError
from dearkd_trainer.service.link import failure, receive_file


def test_a_file_arrives_whole_or_not_at_all(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000  # of several pieces
    stream = io.BytesIO(content + b"next\n")
    receive_file(stream, tmp_path / "run", {"name": "checkpoints/last.pt", "bytes": len(content)})
    assert stream.readline() == b"next\n"
    assert (tmp_path / "run/checkpoints/last.pt").read_bytes() == content
    with pytest.raises(ValueError, match="ends 2 bytes early"):
        receive_file(io.BytesIO(b"abc"), tmp_path / "run", {"name": "checkpoints/last.pt", "bytes": 5})
    assert (tmp_path / "run/checkpoints/last.pt").read_bytes() == content


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "checkpoints/../../outside"])
def test_a_file_stays_in_the_runs_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="outside the run's folder"):
        receive_file(io.BytesIO(b"abc"), tmp_path / "run", {"name": name, "bytes": 3})
    assert not list(tmp_path.rglob("*outside*"))


def test_a_failure_is_told_as_it_was_raised() -> None:
    told = failure(CorruptData("a.tar is cut off", errors=[FieldError("/dataset", "cut off")]))
    assert (told["type"], told["message"]) == ("CorruptData", "a.tar is cut off")
    assert told["errors"] == [{"pointer": "/dataset", "detail": "cut off"}]
    assert failure(OSError(28, "No space left on device"))["type"] == DiskFull.__name__
