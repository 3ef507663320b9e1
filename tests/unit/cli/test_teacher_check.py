"""`dearkd teacher check`: of a file, and of an id with a dataset; the API is a stand-in, storage is real."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dearkd.cli import main
from dearkd.data.manifests import DatasetManifest, count_classes
from dearkd.data.shard_files import Sample, write_shard
from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.storage.catalog import Teacher
from dearkd.storage.objects import Storage
from dearkd.vision.images import encode
from dearkd.vision.teachers import save_teacher
from tests.support.stand_in_api import StandInApi
from tests.support.tinted_digits import NAMES, SPEC, tinted_digits, tinted_teacher, write_class_folders

FLAGS = ["--architecture", SPEC.architecture, "--image-size", "32"]
IMAGENET = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
COUNT = 60

Run = Callable[..., int | str | None]


@pytest.fixture
def run(api: StandInApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DEARKD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DEARKD_STORAGE_URL", f"file://{tmp_path}/storage")

    def run(*arguments: str | Path) -> int | str | None:
        with pytest.raises(SystemExit) as ended:
            main(["teacher", "check", *map(str, arguments)])
        return ended.value.code

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"state_dict": tinted_teacher().state_dict()}, tmp_path / "best.pth")
    return tmp_path / "best.pth"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels, labels = tinted_digits()
    return write_class_folders(tmp_path / "digits", pixels[600:700], labels[600:700], NAMES)


def test_an_order_that_no_flag_names_is_printed_as_flags(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tinted_teacher("test_resnet").state_dict(), tmp_path / "best.pth")
    pixels, labels = tinted_digits()
    names = [f"a {'glkabjchdief'[label]}" for label in range(12)]
    folder = write_class_folders(tmp_path / "digits", pixels[:300], labels[:300], names)
    assert run(tmp_path / "best.pth", folder, *IMAGENET, "--image-size", "64", "--images", "200") == 0
    flags = " ".join(f"--class-name '{name}'" for name in names)
    assert "with it and 32 px, as these images are, top-1 is" in (said := capsys.readouterr().out)
    assert f"If that is right, give --image-size 32 {flags}" in said


def test_what_would_explain_a_low_figure_is_printed_and_drawn(
    run: Run, checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--mean", "0,0,0", "--std", "1,1,1", "--class-order", "number", "--images", str(COUNT)]
    assert run(checkpoint, folder, *FLAGS, *wrong, "--out", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{COUNT} images, 12 classes\n")
    assert "mean and std of ImageNet is clearly better: read the teacher with --mean 0.485" in said.out
    written = json.loads((tmp_path / "out" / "check.json").read_text())
    assert f"{written['as_given']['top1']:.1%}" in said.out
    assert [trial["clearly_better"] for trial in written["trials"]].count(True) >= 1
    assert sum(answer["right"] for answer in written["answers"]) / COUNT == pytest.approx(written["as_given"]["top1"])
    with Image.open(tmp_path / "out" / "check.png") as picture:
        assert picture.size == (6 * 154 + 10, 4 * 190 + 10)
        # The first image is there, enlarged: red digits on black.
        tile = np.asarray(picture.crop((10, 10, 154, 154))).mean((0, 1))
    pixels, labels = tinted_digits()
    first = pixels[600:700][labels[600:700] == 0][0]
    assert tile == pytest.approx(first.float().mean((1, 2)).numpy(), abs=3)
    assert run(checkpoint, folder, *FLAGS, "--out", tmp_path / "out") == 1
    assert "not empty" in capsys.readouterr().err


def test_a_registered_teacher_is_checked_on_a_registered_dataset(
    run: Run, api: StandInApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_teacher(tinted_teacher(), tmp_path / "weights.safetensors")
    data = (tmp_path / "weights.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    about = {"sha256": digest, "bytes": len(data), "parameters": 1, "batch_norm_layers": 1}
    teacher = Teacher(id=new_id("tch"), created_at=datetime.now(UTC), **about, **SPEC.model_dump())
    pixels, labels = tinted_digits()
    images = zip(pixels[600:700], labels[600:700].tolist(), strict=True)
    samples = (Sample(f"{n:03d}", encode(image, "png"), "png", label, {}) for n, (image, label) in enumerate(images))
    shard = write_shard(tmp_path / "0.tar", samples)
    dataset = DatasetManifest(
        id=new_id("ds"),
        created_at=datetime.now(UTC),
        num_samples=100,
        num_classes=12,
        image_size=32,
        in_chans=3,
        classes=count_classes([shard], NAMES, 12),
        shards=[shard],
        prefix="somewhere",
    )
    api.answer(f"GET /v1/teachers/{teacher.id}", teacher.model_dump(mode="json"))
    api.answer(f"GET /v1/datasets/{dataset.id}", dataset.model_dump(mode="json"))
    api.answer(f"GET /v1/datasets/{dataset.id}/files/0.tar", (tmp_path / "0.tar").read_bytes())
    assert run(teacher.id, dataset.id) == 1
    assert "DEARKD_STORAGE_URL" in capsys.readouterr().err
    storage = Storage.open(Settings())
    storage.put(f"teachers/{teacher.id}/weights.safetensors", tmp_path / "weights.safetensors")
    assert run(teacher.id, dataset.id, "--images", str(COUNT), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["own_order"], found["together"]) == (COUNT, None, [])
    assert not any(trial["clearly_better"] for trial in found["trials"])
    assert found["as_given"]["top1"] > 0.4
    assert run(teacher.id, dataset.id, "--mean", "0,0,0") == 2
    assert "leave that out" in capsys.readouterr().err


def test_errors_are_one_line(
    run: Run, checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, code, named in (
        ([checkpoint, tmp_path / "empty"], 2, "neither *.tar shards nor class folders"),
        ([checkpoint, folder / "0"], 2, "no class folders"),
        ([tmp_path / "none.pth", folder], 2, "does not exist"),
        ([checkpoint, folder, "--images", "0"], 2, "--images"),
    ):
        assert run(*arguments, *FLAGS, *IMAGENET) == code
        assert named in (said := capsys.readouterr().err.splitlines()[-1]), said
