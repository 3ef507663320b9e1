"""`dearkd export` and `dearkd evaluate`: on folders in this process, on ids through a real API."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from dearkd.cli import main
from dearkd.data.manifests import DatasetManifest, count_classes, datasets
from dearkd.data.shard_files import Sample, Shard, write_shard
from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.specs import StudentSpec, Task
from dearkd.storage.catalog import Accuracy, Model, describe_file, models
from dearkd.storage.objects import Storage
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.data.loader import to_picture
from dearkd_trainer.data.recipe import eval_transform
from dearkd_trainer.model.export import model_config, save_model
from dearkd_trainer.model.onnx_export import export_onnx
from dearkd_trainer.model.student import Student, create_student
from dearkd_trainer.record.card import run_card
from tests.support.bars import CLASSES, SIDE, bars
from tests.support.programs import run_program
from tests.support.services import database, redis_server, serving

__all__ = ["redis_server"]

NAMES = ["low", "middle", "high"]
MEAN, STD = [0.4], [0.3]


@dataclass(frozen=True)
class Outcome:
    code: int | str | None
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DEARKD_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(ended.value.code, captured.out, captured.err)

    return run


def make_student(mix: str = "logits") -> tuple[StudentSpec, Student]:
    spec = StudentSpec(
        architecture="dearkd_micro_patch8_32",
        image_size=SIDE,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mhca_blocks=1,
        drop_path_rate=0.1,
        distilled=True,
        mhca_mix=mix,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return spec, create_student(spec, CLASSES, 1).eval()


@pytest.fixture
def student() -> Student:
    return make_student()[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run leaves behind."""
    spec, student = make_student()
    task = Task(num_classes=CLASSES, in_chans=1, image_size=SIDE, mean=MEAN, std=STD, class_names=NAMES)
    config = model_config(spec, student, task)
    save_model(tmp_path / "model", student, config)
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, Shard]:
    (tmp_path / "shards").mkdir()
    path = tmp_path / "shards" / "train-000000.tar"
    samples = (Sample(f"{n:03d}", encode(x, "png"), "png", y, {}) for n, (x, y) in enumerate(bars(20)))
    return path.parent, write_shard(path, samples)


def images() -> torch.Tensor:
    return torch.randn(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("to", ["safetensors", "hf"])
def test_timm_loads_an_export_in_another_process(
    run: Run, folder: Path, student: Student, tmp_path: Path, to: str
) -> None:
    outcome = run("export", folder, tmp_path / "out", "--to", to, "--json")
    assert outcome.code == 0, outcome.err
    save_file({"images": images()}, tmp_path / "images.safetensors")
    program = """
import sys
import dearkd_trainer
import timm, torch
from safetensors.torch import load_file, save_file
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
assert (data["input_size"], data["mean"], data["std"]) == ((1, 16, 16), [0.4], [0.3]), data
assert model.pretrained_cfg["label_names"] == ["low", "middle", "high"]
other = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True, num_classes=5, img_size=32).eval()
assert other(torch.zeros(1, 1, 32, 32)).shape == (1, 5)
with torch.no_grad():
    save_file({"logits": model(load_file(sys.argv[2])["images"])}, sys.argv[3])
"""
    arguments = [tmp_path / "out", tmp_path / "images.safetensors", tmp_path / "logits.safetensors"]
    done = run_program(program, *map(str, arguments))
    assert done.returncode == 0, done.stderr
    logits = load_file(tmp_path / "logits.safetensors")["logits"]
    torch.testing.assert_close(logits, student(images()).detach(), rtol=0, atol=1e-6)
    named = {file["name"]: file["sha256"] for file in outcome.json["files"]}
    assert named == {path.name: describe_file(path).sha256 for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("mix", ["logits", "probabilities"])
def test_onnx_runtime_says_what_torch_says_for_any_batch(tmp_path: Path, mix: str) -> None:
    import onnxruntime

    _, student = make_student(mix)
    state = {name: value.clone() for name, value in student.state_dict().items()}
    assert export_onnx(student, tmp_path / "model.onnx", in_chans=1, image_size=SIDE) <= 1e-4
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert student.blocks[0].attn.fused_attn is True
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        given = torch.randn(batch, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(batch))
        (logits,) = session.run(["logits"], {"images": given.numpy()})
        np.testing.assert_allclose(logits, student(given).detach().numpy(), rtol=0, atol=1e-4)


def test_a_folder_that_is_not_empty_and_a_model_that_is_none_leave_nothing(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    before = tree(tmp_path)
    outcome = run("export", folder, taken, "--to", "hf")
    assert outcome.code == 1
    assert "not empty" in outcome.err
    (folder / "model.safetensors").write_bytes(b"no weights")
    for reference, named in (
        (folder, "does not hold the weights"),
        (tmp_path / "none", "neither"),
        (taken, "no model"),
    ):
        outcome = run("export", reference, tmp_path / "out", "--to", "safetensors")
        assert outcome.code == 1
        assert outcome.err.startswith("error: ")
        assert named in outcome.err
    assert tree(tmp_path) == before
    for arguments in (
        ["--to", "tflite"],
        [],
        ["--to", "onnx", "--license", "mit"],
        ["--to", "pt2", "--opset", "18"],
        ["--to", "hf", "--preprocess"],
    ):
        assert run("export", folder, tmp_path / "out", *arguments).code == 2


def test_an_empty_folder_is_filled(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    outcome = run("export", folder, tmp_path / "out", "--to", "hf", "--license", "mit")
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / 'out'}\n")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "mit",
        "transformers",
        "image-classification",
    )


def test_an_evaluation_is_that_of_the_library(
    run: Run, folder: Path, shards: tuple[Path, Shard], tmp_path: Path
) -> None:
    outcome = run("evaluate", folder, shards[0], "--out", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    data = ShardDataset([shards[0] / "train-000000.tar"], num_classes=CLASSES, in_chans=1)
    pixels = torch.stack([data[n][0] for n in range(20)]).float() / 255
    logits = make_student()[1]((pixels - MEAN[0]) / STD[0]).detach()
    labels = torch.from_numpy(data.labels)
    assert report["top1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert report["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert [(row["name"], row["samples"]) for row in report["per_class"]] == [("low", 7), ("middle", 7), ("high", 6)]
    assert [len(row) for row in report["attention_distance"]["heads"]] == [2, 2]
    assert 0 <= report["expected_calibration_error"] <= 1
    assert tree(tmp_path / "out") == ["attention_distance.png", "confusion.png", "evaluation.json"]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == report
    shown = run("evaluate", folder, shards[0])
    assert shown.code == 0
    assert f"{report['top1']:.2%}" in shown.out
    assert "middle" in shown.out
    assert "--out DIR" in shown.err


def test_images_of_another_size_are_cropped_as_the_models_configuration_says(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "large").mkdir()
    # Bright where a crop of 0.875 cuts off, else noise.
    large = [torch.nn.functional.pad(image, (4, 4, 4, 4), value=255) for image, _ in bars(20)]
    samples = (Sample(f"{n:03d}", encode(image, "png"), "png", n % CLASSES, {}) for n, image in enumerate(large))
    write_shard(tmp_path / "large" / "train-000000.tar", samples)
    data = ShardDataset([tmp_path / "large" / "train-000000.tar"], num_classes=CLASSES, in_chans=1)
    config = json.loads((folder / "config.json").read_text())
    losses = []
    for crop_pct in (1.0, 0.875):
        config["pretrained_cfg"]["crop_pct"] = crop_pct
        (folder / "config.json").write_text(json.dumps(config))
        losses.append(run("evaluate", folder, tmp_path / "large", "--json").json["loss"])
        resized = eval_transform(SIDE, crop_pct)
        pixels = torch.stack([resized(to_picture(data[n][0])) for n in range(20)]).float() / 255
        logits = make_student()[1]((pixels - MEAN[0]) / STD[0]).detach()
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels)).item()
        assert losses[-1] == pytest.approx(expected, rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-4


def test_class_folders_are_evaluated_as_their_shards_are(
    run: Run, folder: Path, shards: tuple[Path, Shard], tmp_path: Path
) -> None:
    from PIL import Image

    for number, (image, label) in enumerate(bars(20)):
        path = tmp_path / "folders" / f"{label}-{NAMES[label]}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    by_folders = run("evaluate", folder, tmp_path / "folders", "--json").json
    by_shards = run("evaluate", folder, shards[0], "--json").json
    assert by_folders["confusion"] == by_shards["confusion"]
    assert by_folders["loss"] == pytest.approx(by_shards["loss"])


def test_what_cannot_be_evaluated_is_refused(
    run: Run, folder: Path, shards: tuple[Path, Shard], tmp_path: Path
) -> None:
    data, shard = shards
    names = data / "class_names.json"

    def refused(*named: str) -> None:
        outcome = run("evaluate", folder, data, "--out", tmp_path / "out")
        assert outcome.code == 1
        assert all(word in outcome.err for word in named), outcome.err
        assert not (tmp_path / "out").exists()

    names.write_text('["low", "high", "middle"]')
    refused("another order", "'high'", "'middle'")
    names.write_text('["low", "high"]')
    refused("2 classes", "3")
    names.unlink()
    manifest = DatasetManifest(
        id=new_id("ds"),
        created_at=datetime.now(UTC),
        num_samples=20,
        num_classes=CLASSES,
        image_size=SIDE,
        in_chans=1,
        classes=count_classes([shard], NAMES, CLASSES),
        shards=[shard],
        prefix="elsewhere",
    )
    (data / "dataset.json").write_text(manifest.model_dump_json())
    assert run("evaluate", folder, data).code == 0
    path = data / shard.name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1024])
    refused(shard.name, "truncated")
    path.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    refused(shard.name, "altered")
    shutil.rmtree(data)
    refused("neither the id of a dataset")


@pytest.mark.services
def test_ids_are_fetched_from_the_api_and_verified(
    run: Run,
    redis_server: str,
    folder: Path,
    shards: tuple[Path, Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(
        redis_url=database(redis_server, 13), storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "api-cache"
    )
    storage = Storage.open(settings)
    dataset, model = store(storage, folder, *shards)
    with serving(settings, tmp_path) as api:
        monkeypatch.setenv("DEARKD_URL", api.url)
        exported = run("export", model, tmp_path / "hub", "--to", "hf", "--license", "cc-by-4.0", "--json")
        assert exported.code == 0, exported.out
        card = ModelCard.load(tmp_path / "hub" / "README.md")
        assert card.data.license == "cc-by-4.0"
        assert [result.metric_value for result in card.data.eval_results] == [0.5, 1.0]
        assert "`tch-1`" in card.text
        by_id = run("evaluate", model, dataset, "--json")
        assert by_id.code == 0, by_id.out
        assert by_id.json["confusion"] == run("evaluate", folder, shards[0], "--json").json["confusion"]
        shard = f"datasets/{dataset}/{shards[1].name}"
        storage.put(shard, storage.read(shard)[:-1024])
        assert run("evaluate", model, dataset).code == 0  # the verified copy
        shutil.rmtree(tmp_path / "cache")
        altered = run("evaluate", model, dataset)
        assert altered.code == 1
        assert shards[1].name in altered.err
        assert not list((tmp_path / "cache").rglob("*.tar"))
        missing = run("export", new_id("mdl"), tmp_path / "none", "--to", "hf", "--json")
        assert (missing.code, missing.json["error"]["code"]) == (1, "not_found")


def store(storage: Storage, folder: Path, data: Path, shard: Shard) -> tuple[str, str]:
    """A dataset and a model as workers leave them."""
    dataset = DatasetManifest(
        id=(identifier := new_id("ds")),
        created_at=datetime.now(UTC),
        num_samples=20,
        num_classes=CLASSES,
        image_size=SIDE,
        in_chans=1,
        classes=count_classes([shard], NAMES, CLASSES),
        shards=[shard],
        prefix=f"datasets/{identifier}",
    )
    storage.put(f"datasets/{identifier}/{shard.name}", data / shard.name)
    datasets(storage).create(dataset)
    model = Model(
        id=new_id("mdl"),
        name="bars: a model",
        created_at=datetime.now(UTC),
        architecture="dearkd_micro_patch8_32",
        num_classes=CLASSES,
        in_chans=1,
        image_size=SIDE,
        class_names=NAMES,
        accuracy=Accuracy(top1=0.5, top5=1.0, dataset=identifier),
        dataset=identifier,
        teacher="tch-1",
        run=new_id("run"),
        spec={"optimizer": {"model_ema_half_life": None}, "seed": 3},
    )
    card = run_card(
        "bars: a model",
        model.spec,
        kind="vision transformer",
        architecture=model.architecture,
        image_size=SIDE,
        in_chans=1,
        num_classes=CLASSES,
        data=f"20 images of `{identifier}`",
        teacher=model.teacher,
        accuracy={"top-1": 0.5, "top-5": 1.0},
        evaluated_on=identifier,
        metrics={"loss": 0.25},
        run=model.run,
    )
    (folder / "README.md").write_text(card)
    files = [describe_file(folder / name) for name in ("model.safetensors", "config.json", "README.md")]
    for file in files:
        storage.put(f"models/{model.id}/{file.name}", folder / file.name)
    models(storage).create(model.model_copy(update={"files": files}))
    return identifier, model.id
