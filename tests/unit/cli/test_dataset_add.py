"""`dearkd dataset add` into real storage; the API that registers what was copied is a stand-in."""

import io
import json
import tarfile
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import typer
from PIL import Image

from dearkd.cli import main
from dearkd.data import image_folder
from dearkd.storage.marker import KEY
from dearkd.storage.objects import Storage
from tests.support.stand_in_api import StandInApi, a_dataset


def encoded(mode: str, image_format: str) -> bytes:
    """Noise of seed 0."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, image_format)
    return file.getvalue()


@pytest.fixture
def storage(api: StandInApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEARKD_STORAGE_URL", f"file://{tmp_path / 'storage'}")
    api.answer("GET /readyz", {"status": "ready"})
    return tmp_path / "storage"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven images in two classes, one of them in a folder below its class folder; pixels from seed 0."""
    pixels = np.random.default_rng(0)
    for name in ("cat/a.png", "cat/b.jpg", "cat/more/c.PNG", "dog/d.png", "dog/e.png", "dog/f.webp", "dog/g.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def add(*arguments: str | Path) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(["dataset", "add", *map(str, arguments)])
    return ended.value.code


def copied(storage: Path) -> list[str]:
    """What lies there, but for the marker of the storage itself."""
    files = (str(path.relative_to(storage)) for path in storage.rglob("*") if path.is_file())
    return sorted(name for name in files if name != KEY)


def test_an_image_folder_becomes_shards_with_its_very_files(
    api: StandInApi, storage: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image_folder, "SHARD_SAMPLES", 3)
    api.answer("POST /v1/datasets", a_dataset("ds-1", num_samples=7), status=201)
    assert add(images) == 0
    assert capsys.readouterr().out == "ds-1\n"
    body = json.loads(api.requests[-1].body)
    assert body["name"] == "images"
    folder = storage / body["prefix"]
    shards = sorted(folder.glob("*.tar"))
    found: list[tuple[int, bytes]] = []
    for shard in shards:
        members = _members(shard)
        for name, data in members.items():
            key, _, suffix = name.partition(".")
            if suffix in ("png", "jpg", "webp"):
                found.append((int(members[f"{key}.cls"]), data))
    expected = [(0, "cat/a.png"), (0, "cat/b.jpg"), (0, "cat/more/c.PNG")]
    expected += [(1, f"dog/{name}") for name in ("d.png", "e.png", "f.webp", "g.png")]
    assert found == [(label, (images / name).read_bytes()) for label, name in expected]
    info = json.loads((folder / "_info.json").read_text())["splits"]["train"]
    assert info["filenames"] == [shard.name for shard in shards]
    assert info["shard_lengths"] == [3, 3, 1]
    assert json.loads((folder / "class_names.json").read_text()) == ["cat", "dog"]


def test_a_folder_of_shards_is_copied_as_it_is(api: StandInApi, storage: Path, tmp_path: Path) -> None:
    source = tmp_path / "shards"
    source.mkdir()
    for index in range(2):
        with tarfile.open(source / f"part-{index}.tar", "w") as tar:
            member = tarfile.TarInfo(f"{index}.cls")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"0"))
    api.answer("POST /v1/datasets", a_dataset("ds-1", num_samples=2), status=201)
    assert add(source, "--name", "mine") == 0
    body = json.loads(api.requests[-1].body)
    assert body["name"] == "mine"
    for path in source.iterdir():
        assert (storage / body["prefix"] / path.name).read_bytes() == path.read_bytes()
    assert len(copied(storage)) == 2


@pytest.mark.parametrize(("code", "hinted"), [("no_shards", True), ("corrupt_shard", False), ("invalid_input", False)])
def test_what_the_api_refuses_does_not_stay_in_storage(
    api: StandInApi, storage: Path, images: Path, capsys: pytest.CaptureFixture[str], code: str, hinted: bool
) -> None:
    error = {"pointer": "/prefix", "detail": "it is so"}
    api.problem("POST /v1/datasets", 422, code, "/prefix: it is so", [error])
    assert add(images) == 1
    assert copied(storage) == []
    said = capsys.readouterr().err
    assert "it is so" in said
    assert ("DEARKD_STORAGE_URL" in said) == hinted


def test_class_names_json_decides_on_the_order_of_class_folders(api: StandInApi, storage: Path, images: Path) -> None:
    (images / "class_names.json").write_text('["emu", "dog", "cat"]')
    api.answer("POST /v1/datasets", a_dataset("ds-1", num_samples=7), status=201)
    assert add(images) == 0
    folder = storage / json.loads(api.requests[-1].body)["prefix"]
    members = _members(folder / "train-000000.tar")
    labels = {data: int(members[name.split(".")[0] + ".cls"]) for name, data in members.items()}
    assert labels[(images / "dog" / "d.png").read_bytes()] == 1
    assert labels[(images / "cat" / "a.png").read_bytes()] == 2
    assert json.loads((folder / "class_names.json").read_text()) == ["emu", "dog", "cat"]


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [
        ('["cat"]', 2, "'dog'"),
        ('["cat", "dog", "cat"]', 2, "'cat' twice"),
        ('["cat", ', 1, "class_names.json is not a list of names"),
    ],
)
def test_class_names_json_that_class_folders_contradict_is_refused(
    storage: Path, images: Path, capsys: pytest.CaptureFixture[str], names: str, code: int, said: str
) -> None:
    (images / "class_names.json").write_text(names)
    assert add(images) == code
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert copied(storage) == []


def test_an_info_json_of_several_splits_is_refused_before_its_shards_are_copied(
    api: StandInApi, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(b"x")
    split = {"num_samples": 1, "filenames": ["a.tar"], "shard_lengths": [1]}
    (tmp_path / "shards" / "_info.json").write_text(json.dumps({"splits": {"train": split, "test": split}}))
    assert add(tmp_path / "shards") == 1
    assert "2 splits (train, test)" in capsys.readouterr().err
    assert copied(storage) == []
    assert api.requests == []


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("dog/z.tiff", b"II*", "z.tiff"),
        ("dog/z.png", b"\x89PNG\r\n\x1a\nbut then no image", "z.png"),
        ("dog/z.jpg", encoded("RGB", "JPEG")[:-40], "z.jpg"),
        ("empty/z.txt", b"no image", "empty"),
    ],
)
def test_a_folder_that_would_lose_images_is_refused_and_nothing_stays(
    storage: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    data: bytes,
    named: str,
) -> None:
    monkeypatch.setattr(Storage, "create", nothing_is_copied)
    monkeypatch.setenv("COLUMNS", "400")
    path = images / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    assert add(images) == 2
    assert named in capsys.readouterr().err
    assert copied(storage) == []


def nothing_is_copied(*_: object) -> NoReturn:
    raise AssertionError("something was copied before the refusal")


def _members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {member.name: file.read() for member in tar if (file := tar.extractfile(member)) is not None}


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\u202eb", "a\u200bb"], ids=ascii)
def test_names_with_control_characters_are_refused_before_anything_is_copied(tmp_path: Path, name: str) -> None:
    (tmp_path / "set" / name).mkdir(parents=True)
    with pytest.raises(typer.BadParameter, match=r"control character U\+") as refused:
        image_folder.read_folder(tmp_path / "set")
    assert refused.value.message.isprintable()
