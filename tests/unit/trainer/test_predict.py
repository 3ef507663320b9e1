"""`dearkd predict` on real digits: the answers are the networks' own, and the heat lies where the attention is.

The command is registered on an app of the test's own, so that it is this one whatever is installed.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import Tensor, nn
from typer.main import get_command

from dearkd.errors import Conflict, InvalidInput, NotFound
from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.specs import StudentSpec, Task, TeacherSpec
from dearkd.storage.catalog import Model, Teacher
from dearkd.storage.objects import Storage
from dearkd.vision.teachers import load_teacher
from dearkd_trainer.commands import register_predict
from dearkd_trainer.demo.digits import real_digits
from dearkd_trainer.evaluate.pictures import attention_picture
from dearkd_trainer.model.attention import attention_rollout, attention_weights
from dearkd_trainer.model.export import model_config, save_model
from dearkd_trainer.model.student import Student, create_student
from tests.support.stand_in_api import StandInApi, stand_in_api

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
STUDENT = StudentSpec(
    architecture="dearkd_micro_patch8_32",
    image_size=32,
    patch_size=8,
    embed_dim=24,
    depth=3,
    num_heads=3,
    mhca_blocks=2,
    drop_path_rate=0.0,
    distilled=True,
)
TASK = Task(num_classes=10, in_chans=1, image_size=32, mean=[0.3], std=[0.35], class_names=NAMES)


def make_student() -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = create_student(STUDENT, 10, 1).eval()
        # Of one that is just initialised all answers are nearly the same.
        nn.init.normal_(student.head.weight, std=2)
    return student


@pytest.fixture
def model(tmp_path: Path) -> Path:
    student = make_student()
    save_model(tmp_path / "model", student, model_config(STUDENT, student, TASK))
    return tmp_path / "model"


@pytest.fixture
def digits(tmp_path: Path) -> list[Path]:
    """One as it is, one in colour and of another size."""
    images = real_digits()[1].images
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "a digit.png")
    Image.fromarray(images[1, 0].numpy()).convert("RGB").resize((64, 48), Image.Resampling.NEAREST).save(
        tmp_path / "large.png"
    )
    return [tmp_path / "a digit.png", tmp_path / "large.png"]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInApi]:
    with stand_in_api() as server:
        monkeypatch.setenv("DEARKD_URL", server.url)
        yield server


Predict = Callable[..., None]


@pytest.fixture
def predict(api: StandInApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
    monkeypatch.setenv("DEARKD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DEARKD_STORAGE_URL", f"file://{tmp_path}/storage")
    app = typer.Typer()
    register_predict(app)

    def predict(*arguments: str | Path) -> None:
        get_command(app)(args=[str(argument) for argument in arguments], standalone_mode=False)

    return predict


def register_teacher(api: StandInApi, spec: TeacherSpec, weights: Path, *, stored: bool = True) -> str:
    data = weights.read_bytes()
    about = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "parameters": 1, "batch_norm_layers": 1}
    teacher = Teacher(id=new_id("tch"), created_at=datetime.now(UTC), **about, **spec.model_dump())
    api.answer(f"GET /v1/teachers/{teacher.id}", teacher.model_dump(mode="json"))
    if stored:
        Storage.open(Settings()).put(f"teachers/{teacher.id}/weights.safetensors", weights)
    return teacher.id


def assert_answers(answers: list[dict[str, Any]], logits: Tensor, names: list[str]) -> None:
    probabilities = logits.double().softmax(0)
    order = sorted(range(len(names)), key=lambda index: -probabilities[index])[:5]
    assert [answer["class"] for answer in answers] == order
    assert [answer["name"] for answer in answers] == [names[index] for index in order]
    wanted = [probabilities[index].item() for index in order]
    assert [answer["probability"] for answer in answers] == pytest.approx(wanted, rel=1e-3)


@torch.no_grad()
def test_answers_are_those_of_student_and_teacher(
    predict: Predict,
    api: StandInApi,
    model: Path,
    digits: list[Path],
    plain_teacher: tuple[TeacherSpec, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec, weights = plain_teacher
    teacher = register_teacher(api, spec, weights)
    predict(model, *digits, "--teacher", teacher, "--out", tmp_path / "out", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["teacher"], [entry["image"] for entry in found["predictions"]]) == (teacher, [*map(str, digits)])
    pixels = real_digits()[1].images[:1].float() / 255
    first = found["predictions"][0]
    assert_answers(first["student"], make_student()((pixels - 0.3) / 0.35)[0], NAMES)
    assert_answers(first["teacher"], load_teacher(spec, weights)((pixels - 0.5) / 0.5)[0], NAMES)
    assert [entry["attention"] for entry in found["predictions"]] == ["0000-a_digit.png", "0001-large.png"]
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == found
    for entry in found["predictions"]:
        with Image.open(tmp_path / "out" / entry["attention"]) as picture:
            assert picture.format == "PNG"
    predict(model, digits[0])
    said = capsys.readouterr()
    assert f"{first['student'][0]['name']}" in said.out
    assert f"{first['student'][4]['probability']:.1%}" in said.out
    assert "TEACHER" not in said.out
    assert "its teacher is left out: the model does not say which it was; --teacher ID" in said.err
    with pytest.raises(Conflict, match="not empty"):
        predict(model, digits[0], "--out", tmp_path / "out")


def test_a_models_own_teacher_is_asked_where_it_can_be_had(
    predict: Predict,
    api: StandInApi,
    model: Path,
    digits: list[Path],
    plain_teacher: tuple[TeacherSpec, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec, weights = plain_teacher
    elsewhere = register_teacher(api, spec, weights, stored=False)
    with pytest.raises(NotFound, match="DEARKD_STORAGE_URL"):
        predict(model, digits[0], "--teacher", elsewhere)
    here = register_teacher(api, spec, weights)
    manifest = Model(
        id=new_id("mdl"),
        created_at=datetime.now(UTC),
        architecture=STUDENT.architecture,
        num_classes=10,
        in_chans=1,
        image_size=32,
        dataset="ds-1",
        run="run-1",
        spec={},
    )
    # In this order: a verified copy of the same weights would do for the one without.
    for teacher, has in ((elsewhere, False), (new_id("tch"), False), (here, True)):
        (model / "model.json").write_text(manifest.model_copy(update={"teacher": teacher}).model_dump_json())
        predict(model, digits[0], "--json")
        said = capsys.readouterr()
        found = json.loads(said.out)
        assert found["teacher"] == (teacher if has else None)
        assert (found["predictions"][0]["teacher"] is not None) is has
        assert ("its teacher is left out" in said.err) is not has


def test_what_is_no_image_is_named_and_leaves_nothing(
    predict: Predict, model: Path, digits: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    data = digits[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for path, error in (
        (tmp_path / "notes.txt", InvalidInput),
        (tmp_path / "none.png", InvalidInput),
        (tmp_path / "cut.png", typer.BadParameter),
    ):
        with pytest.raises(error, match=path.name):
            predict(model, digits[0], path, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@torch.no_grad()
@pytest.mark.parametrize("mix", ["logits", "probabilities"])
def test_rollout_is_the_product_of_the_blocks_weights(mix: str) -> None:
    spec = STUDENT.model_copy(update={"mhca_mix": mix})
    torch.manual_seed(0)
    student = create_student(spec, 10, 1).train()
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    inputs: list[Tensor] = []
    for block in student.blocks:
        block.attn.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    found = attention_rollout(student, images)
    assert student.training
    assert found.shape == (3, 4, 4)
    for number in range(3):
        row = [1.0] + [0.0] * 17  # the class token; going back, its share moves to those that it read
        for block, x in reversed(list(zip(student.blocks, inputs, strict=True))):
            weights = attention_weights(block.attn.eval(), x)[number].mean(0).tolist()
            row = [
                0.5 * row[key] + 0.5 * sum(row[query] * weights[query][key] for query in range(18)) for key in range(18)
            ]
        patches = torch.tensor(row[2:])
        torch.testing.assert_close(found[number].flatten(), patches / patches.sum(), rtol=1e-4, atol=1e-6)


def test_the_heat_lies_on_the_patch_of_the_largest_share() -> None:
    pixels, shares = torch.full((3, 32, 32), 128, dtype=torch.uint8), torch.zeros(4, 4)
    without = np.asarray(Image.open(io.BytesIO(attention_picture(pixels, shares, "$x"))).convert("RGB")).astype(int)
    shares[0, 3] = 1
    drawn = np.asarray(Image.open(io.BytesIO(attention_picture(pixels, shares, "$x"))).convert("RGB")).astype(int)
    changed = (np.abs(drawn - without).sum(2) > 60).nonzero()
    rows, columns = (places.mean() / side for places, side in zip(changed, drawn.shape, strict=False))
    # In the right one of two pictures, at its top right.
    assert rows < 0.5
    assert columns > 0.8
