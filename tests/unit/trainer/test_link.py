"""Files, errors and settings that pass between a run and the machines that train it."""

import io
from pathlib import Path

import pytest

from dearkd.errors import CorruptData, DiskFull, FieldError
from dearkd.settings import Settings
from dearkd_trainer.service.data import PLACES
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


def test_who_trains_elsewhere_finds_storage_as_it_was_found_here() -> None:
    """Whatever the settings of storage: each is another one than by default."""
    here = Settings(
        storage_url="s3://bucket/prefix",
        s3_endpoint="http://127.0.0.1:9",
        s3_region="eu-central-1",
        s3_addressing="virtual",
        cache_bytes=2**31,
    )
    there = Settings(**here.model_dump(mode="json", include=PLACES))
    named = [name for name in Settings.model_fields if name.startswith(("storage", "s3", "cache"))]
    assert "s3_addressing" in named
    assert {name: getattr(there, name) for name in named} == {name: getattr(here, name) for name in named}
