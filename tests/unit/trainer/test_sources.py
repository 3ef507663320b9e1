"""Which datasets a model may be evaluated on, and what damaged files beside shards and models are answered with."""

import io
import json
from pathlib import Path
from typing import NoReturn

import pytest
import typer
from PIL import Image

from dearkd.choices import FolderOrder
from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import InvalidInput
from dearkd.storage.file_cache import FileCache
from dearkd.vision.students import StudentConfig
from dearkd_trainer.commands.sources import TrainedModel, open_dataset, open_model, recorded_rows

NAMES = ["cat", "dog", "emu"]


def config(in_chans: int) -> dict[str, object]:
    return {
        "num_classes": 3,
        "label_names": NAMES,
        "pretrained_cfg": {"input_size": [in_chans, 8, 8], "mean": [0.5] * in_chans, "std": [0.5] * in_chans},
    }


def student(in_chans: int) -> TrainedModel:
    return TrainedModel("student", {}, {}, StudentConfig.model_validate(config(in_chans)), None)


def image(mode: str, shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).convert(mode).save(file, "PNG")
    return file.getvalue()


def no_api() -> NoReturn:
    raise AssertionError("a folder needs no API")


def labels(folder: Path, model: TrainedModel, tmp_path: Path) -> list[int]:
    with FileCache(tmp_path / "cache", 2**20) as cache, open_dataset(str(folder), model, no_api, cache) as found:
        return found.labels.tolist()


def write_folders(folder: Path, mode: str, names: list[str]) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "one.png").write_bytes(image(mode))
    return folder


def write_shards(folder: Path, *modes: str) -> Path:
    """A shard of one image for each mode."""
    folder.mkdir()
    for n, mode in enumerate(modes):
        write_shard(folder / f"{n}.tar", [Sample("a", image(mode), "png", n, {})])
    return folder


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3)])
def test_images_of_other_channels_than_the_models_are_converted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, channels: int
) -> None:
    folders, shards = write_folders(tmp_path / "folders", mode, NAMES), write_shards(tmp_path / "shards", mode, mode)
    for folder, found in ((folders, [0, 1, 2]), (shards, [0, 1])):
        assert labels(folder, student(channels), tmp_path) == found
        assert "made" not in capsys.readouterr().err
        assert labels(folder, student(4 - channels), tmp_path) == found
        said = capsys.readouterr().err
        assert ("made grey" if channels == 3 else "made colour") in said
        assert str(len(found)) in said


def test_grey_and_colour_images_are_evaluated_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folders(tmp_path / "folders", "L", NAMES)
    (folder / "emu" / "two.png").write_bytes(image("RGB"))
    for found, read in ((folder, [0, 1, 2, 2]), (write_shards(tmp_path / "mixed", "L", "RGB"), [0, 1])):
        assert labels(found, student(1), tmp_path) == read
        assert "made grey" in capsys.readouterr().err


def test_shards_of_several_splits_are_not_evaluated_together(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", "L", "L")
    (folder / "0.tar").rename(folder / "train-0.tar")
    (folder / "1.tar").rename(folder / "val-0.tar")
    with pytest.raises(typer.BadParameter, match=r"2 splits.*--split"):
        labels(folder, student(1), tmp_path)
    with (
        FileCache(tmp_path / "cache", 2**20) as cache,
        open_dataset(str(folder), student(1), no_api, cache, split="val") as found,
    ):
        assert found.labels.tolist() == [1]


def test_class_folders_that_the_model_names_count_in_its_order(tmp_path: Path) -> None:
    many = [str(n) for n in range(12)]
    named = {**config(1), "num_classes": 12, "label_names": many}
    model = TrainedModel("student", {}, {}, StudentConfig.model_validate(named), None)
    assert labels(write_folders(tmp_path / "folders", "L", many), model, tmp_path) == list(range(12))
    other = write_folders(tmp_path / "other", "L", [f"class{n}" for n in range(12)])
    with pytest.raises(typer.BadParameter, match="--class-order"):
        labels(other, model, tmp_path)


def test_the_order_of_class_folders_may_be_said_where_the_model_has_numbers(tmp_path: Path) -> None:
    """Of a teacher without names output 2 may be the folder 10."""
    numbers = [str(n) for n in range(12)]
    named = {**config(1), "num_classes": 12, "label_names": numbers}
    model = TrainedModel("student", {}, {}, StudentConfig.model_validate(named), None)
    for names in (numbers, [f"class{n}" for n in numbers]):
        folder = write_folders(tmp_path / names[0], "L", names)
        (folder / names[10] / "one.png").write_bytes(image("L", shade=200))
        for order, ten in ((FolderOrder.name, 2), (FolderOrder.natural, 10)):
            with (
                FileCache(tmp_path / "cache", 2**20) as cache,
                open_dataset(str(folder), model, no_api, cache, class_order=order) as found,
            ):
                bright = [label for picture, label in (found[n] for n in range(12)) if picture.max() == 200]
                assert bright == [ten]
    # A list beside them says it as well.
    (folder / "class_names.json").write_text(json.dumps(sorted(names)))
    assert labels(folder, model, tmp_path) == list(range(12))


def test_class_folders_count_in_the_order_of_class_names_json(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "folders", "L", ["dog", "cat"])
    assert labels(folder, student(1), tmp_path) == [0, 1]
    (folder / "class_names.json").write_text(json.dumps(["cat", "dog"]))
    with pytest.raises(InvalidInput, match="2 classes"):
        labels(folder, student(1), tmp_path)
    (folder / "class_names.json").write_text(json.dumps(NAMES))
    assert labels(folder, student(1), tmp_path) == [0, 1]
    (folder / "class_names.json").write_text(json.dumps(["dog", "cat", "emu"]))
    with pytest.raises(InvalidInput, match="labels must be made again"):
        labels(folder, student(1), tmp_path)


def test_of_local_shards_those_are_read_that_info_json_names(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", "L", "L")
    split = {"num_samples": 1, "filenames": ["1.tar"], "shard_lengths": [1]}
    (folder / "_info.json").write_text(json.dumps({"splits": {"validation": split}}))
    assert labels(folder, student(1), tmp_path) == [1]
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": split, "validation": split}}))
    with pytest.raises(InvalidInput, match="2 splits"):
        labels(folder, student(1), tmp_path)


@pytest.mark.parametrize("name", ["class_names.json", "dataset.json", "_info.json"])
@pytest.mark.parametrize("damaged", [b'{"a": 1', b"\xff\xfe", b"3", b'["cat", "dog", 3]'])
def test_damaged_json_beside_shards_is_named_with_a_remedy(tmp_path: Path, name: str, damaged: bytes) -> None:
    folder = write_shards(tmp_path / "shards", "L")
    (folder / name).write_bytes(damaged)
    with pytest.raises(InvalidInput, match=rf"{name} is not .*; (give|fetch|correct)"):
        labels(folder, student(1), tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder whose weights nobody loads."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps(config(1)))
    return folder


@pytest.mark.parametrize("name", ["model.json", "config.json"])
@pytest.mark.parametrize("damaged", [b'{"a": 1', b"\xff\xfe", b"[]", b'{"num_classes": "many"}'])
def test_damaged_json_of_a_model_is_named_with_a_remedy(model: Path, tmp_path: Path, name: str, damaged: bytes) -> None:
    (model / name).write_bytes(damaged)
    with (
        FileCache(tmp_path / "cache", 2**20) as cache,
        pytest.raises(InvalidInput, match=rf"{name} is not .*; (give|fetch)"),
    ):
        open_model(str(model), no_api, cache)


def test_damaged_metrics_are_left_out_and_said_to_be(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileCache(tmp_path / "cache", 2**20) as cache:
        opened = open_model(str(model), no_api, cache)
    assert recorded_rows(opened, no_api) == []
    (model / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert recorded_rows(opened, no_api) == [{"epoch": 1}, {"epoch": 2}]
    assert capsys.readouterr().err == ""
    for damaged in ('{"epoch": 1}\n{"epo', '{"epoch": 1}\n[]\n'):
        (model / "metrics.jsonl").write_text(damaged)
        assert recorded_rows(opened, no_api) == []
        assert "metrics.jsonl, line 2" in capsys.readouterr().err
