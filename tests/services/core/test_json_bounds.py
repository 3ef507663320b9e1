"""What lies beside a client's shards may be of any size: it is refused before it costs memory."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from dearkd.data.sample_labels import MAX_LABEL_BYTES
from dearkd.data.shard_info import INFO, MAX_BYTES, MAX_CLASSES, MAX_SPLITS, read_class_names, read_info
from dearkd.data.shard_reader import MAX_PARTS, inspect_shard
from dearkd.data.tar_members import MAX_NAME
from dearkd.data.unregistered import listed_shards, read_beside_shards
from dearkd.errors import CorruptData, InvalidInput
from dearkd.jobs.store import JobStore


def _info(**split: object) -> bytes:
    return json.dumps({"splits": {"train": {"filenames": ["a.tar"]} | split}}).encode()


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([str(i) for i in range(MAX_CLASSES + 1)]).encode(),
        json.dumps(["x" * 1000]).encode(),
        json.dumps([0] * 1_000_000).encode(),
    ],
    ids=["too many", "too long", "none is a name"],
)
def test_class_names_are_bounded(text: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_class_names(text, "class_names.json")
    assert len(caught.value.message) < 1000


def test_as_many_class_names_as_a_teacher_may_have_are_read() -> None:
    assert len(read_class_names(json.dumps([str(i) for i in range(MAX_CLASSES)]).encode(), "names")) == MAX_CLASSES


@pytest.mark.parametrize(
    "text",
    [
        _info(filenames=["x" * 1000]),
        _info(filenames=[0] * 1_000_000),
        _info(filenames=["a"] * 200_000),
        _info(shard_lengths=["x"] * 1_000_000),
        json.dumps({"splits": {str(i): 0 for i in range(500_000)}}).encode(),
        json.dumps({"splits": {"s" * 1_000_000: {"filenames": ["a"]}}}).encode(),
        json.dumps({"splits": {str(i): {"filenames": ["a"]} for i in range(MAX_SPLITS)}}).encode(),
    ],
    ids=["a long name", "no names", "too many", "no lengths", "too many splits", "a long split", "several splits"],
)
def test_info_is_bounded(text: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_info(text, "_info.json")
    assert len(caught.value.message) < 2000


WRONG = """
import resource, sys
from dearkd.data.shard_info import read_class_names, read_info
from dearkd.errors import InvalidInput
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for read, text in (
    (read_class_names, b"[" + b"0," * 8_000_000 + b"0]"),
    (read_class_names, b"[" + b'"",' * 5_000_000 + b'""]'),
    (read_info, b'{"splits":{"a":{"filenames":[' + b"0," * 8_000_000 + b"0]}}}"),
    (read_info, b'{"splits":{' + b",".join(b'"%x":0' % i for i in range(1_500_000)) + b"}}"),
):
    try:
        read(text, "file")
    except InvalidInput:
        continue
    sys.exit("was taken")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS counts ru_maxrss in bytes")
def test_files_of_nothing_but_mistakes_cost_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", WRONG], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1500  # MiB; an error for each of them took more than 6 GiB


def test_a_file_that_is_too_large_is_not_read(store: JobStore) -> None:
    storage = store.storage
    storage.put(f"set/{INFO}", b" " * (MAX_BYTES + 1))
    for read in (lambda: read_beside_shards(storage, "set", INFO), lambda: listed_shards(storage, "set")):
        with pytest.raises(InvalidInput, match=str(MAX_BYTES)) as caught:
            read()
        assert [error.pointer for error in caught.value.errors] == ["/prefix"]


def _tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("a.cls", b"0" * (MAX_LABEL_BYTES + 1))],
        [("a.cls", b" " * 10_000_000 + b"0")],
        [("a" * (MAX_NAME + 1) + ".cls", b"0")],
        [(f"a.{i}", b"") for i in range(MAX_PARTS + 1)],
    ],
    ids=["a long label", "a label far behind", "a long name", "many members"],
)
def test_what_a_sample_holds_is_bounded(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    with pytest.raises(CorruptData) as caught:
        inspect_shard(_tar(tmp_path / "x.tar", [("a.png", file.getvalue()), *members]))
    assert len(caught.value.message) < 1000
