"""What `dearkd export` writes loads where there is no dearkd: in torch alone, in timm, in transformers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dearkd.cli import main
from dearkd.errors import DearKDError, InvalidInput
from dearkd.settings import Settings
from dearkd.specs import StudentSpec, Task
from dearkd.storage.file_cache import FileCache
from dearkd_trainer.commands.export import ExportOptions, Format, write_export
from dearkd_trainer.commands.sources import TrainedModel, open_model
from dearkd_trainer.data.recipe import eval_transform
from dearkd_trainer.model import onnx_export
from dearkd_trainer.model.export import CONFIG, model_config, save_model
from dearkd_trainer.model.graph import GraphInput, require_same
from dearkd_trainer.model.hub_files import IMAGES_FILE, MODEL_FILE
from dearkd_trainer.model.student import Student, create_student
from dearkd_trainer.record import card
from tests.support.documents import blocks, read
from tests.support.without_dearkd import run_without_dearkd

SIDE, CROP = 16, 0.875
NAMES = ["low", "middle", "high"]
MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.2, 0.1]

KINDS = {"grey": 1, "colour": 3}
PROGRAM = """
import contextlib, io
import torch

blocks = json.loads(sys.argv[1])
images = {kind: torch.load(f"{kind}/images.pt") for kind in ("grey", "colour")}
results = {}

def logits(model, kind):
    with torch.no_grad():
        return model(images[kind])

def shown(what, kind, **names):
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(blocks[what].replace("FOLDER", f"{kind}/hf").replace("image.png", "large.png"), names)
    return names, told.getvalue()

results["colour/pt2"] = logits(torch.export.load("colour/pt2/model.pt2").module(), "colour")
assert "timm" not in sys.modules

absent -= {"timm", "torchvision"}
cure_torchvision()
for kind in images:
    names, _ = shown("timm in the card", kind)
    assert names["data"]["input_size"] == tuple(images[kind].shape[1:]) and names["data"]["crop_pct"] == 0.875
    assert names["model"].pretrained_cfg["label_names"] == ["low", "middle", "high"]
    results[f"{kind}/timm"] = logits(names["model"], kind)
import timm
other = timm.create_model("local-dir:grey/hf", pretrained=True, num_classes=5, img_size=32).eval()
assert other(torch.zeros(1, 1, 32, 32)).shape == (1, 5)
assert "transformers" not in sys.modules

absent -= {"transformers"}
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
pictures = [Image.open(name) for name in ("large.png", "exact.png")]
for kind in images:
    model = AutoModelForImageClassification.from_pretrained(f"{kind}/hf", trust_remote_code=True)
    answer = model(images[kind], labels=torch.tensor([0, 1, 2]))
    results[f"{kind}/transformers"], results[f"{kind}/loss"] = answer.logits.detach(), answer.loss.detach()
    processor = AutoImageProcessor.from_pretrained(f"{kind}/hf", trust_remote_code=True)
    results[f"{kind}/pixels"] = processor(pictures, return_tensors="pt")["pixel_values"]
    for what in ("card", "manual"):
        scores = {row["label"]: row["score"] for row in eval(shown(f"transformers in the {what}", kind)[1])}
        results[f"{kind}/{what}"] = torch.tensor([scores[name] for name in ("low", "middle", "high")])

tuned = AutoModelForImageClassification.from_pretrained(
    "grey/hf", trust_remote_code=True, num_labels=5, ignore_mismatched_sizes=True
)
tuned.save_pretrained("tuned")
results["tuned"] = logits(tuned, "grey").logits
results["tuned in timm"] = logits(timm.create_model("local-dir:tuned", pretrained=True).eval(), "grey")
from safetensors.torch import save_file
save_file(results, "results.safetensors")
"""


def make_student(in_chans: int) -> tuple[StudentSpec, Student]:
    spec = StudentSpec(
        architecture="dearkd_micro_patch8_32",
        image_size=SIDE,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mhca_blocks=1,
        drop_path_rate=0.1,
        distilled=in_chans == 1,
        mhca_mix="logits" if in_chans == 1 else "probabilities",
    )
    with torch.random.fork_rng():
        torch.manual_seed(in_chans)
        student = create_student(spec, len(NAMES), in_chans).eval()
        for parameter in student.parameters():  # not the zeros that biases begin with
            parameter.data += 0.2 * torch.randn_like(parameter)
        return spec, student


def make_folder(folder: Path, in_chans: int) -> Student:
    """What a run leaves behind."""
    spec, student = make_student(in_chans)
    mean, std = MEAN[:in_chans], STD[:in_chans]
    task = Task(num_classes=3, in_chans=in_chans, image_size=SIDE, mean=mean, std=std, class_names=NAMES)
    save_model(folder, student, model_config(spec, student, task, crop_pct=CROP))
    return student


def opened(folder: Path, cache: Path) -> TrainedModel:
    def connect():
        raise AssertionError("no API is asked for a folder")

    with FileCache(cache, Settings().cache_bytes) as files:
        return open_model(str(folder), connect, files)


Export = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Exports a folder, by default that of a grey student, to a new one."""

    def export(to: Format, folder: Path | None = None, **options) -> Path:
        if folder is None:
            make_folder(folder := tmp_path / "model", 1)
        (out := tmp_path / f"out-{to}").mkdir()
        write_export(opened(folder, tmp_path / "cache"), out, to, ExportOptions(**options))
        return out

    return export


@dataclass(frozen=True)
class Elsewhere:
    """The answers of a process without dearkd, and what it was asked."""

    students: dict[str, Student]
    images: dict[str, Tensor]
    pictures: list[Image.Image]
    results: dict[str, Tensor]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    folder, students, images = tmp_path_factory.mktemp("elsewhere"), {}, {}
    for kind, in_chans in KINDS.items():
        students[kind] = make_folder(folder / kind / "model", in_chans)
        for to in ("pt2", "hf") if kind == "colour" else ("hf",):
            (folder / kind / to).mkdir()
            model = opened(folder / kind / "model", folder / "cache")
            write_export(model, folder / kind / to, to, ExportOptions())
        images[kind] = torch.randn(3, in_chans, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        torch.save(images[kind], folder / kind / "images.pt")
    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 256, shape, np.uint8)) for shape in ((40, 30, 3), (SIDE, SIDE, 3))]
    for name, picture in zip(("large", "exact"), pictures, strict=True):
        picture.save(folder / f"{name}.png")
    in_card = blocks(card.HUB_USE, "python")
    (in_manual,) = (block for block in blocks(read("docs/export.md"), "python") if "trust_remote_code" in block)
    shown = {
        "transformers in the card": in_card[0],
        "timm in the card": in_card[1],
        "transformers in the manual": in_manual.replace('"student"', '"FOLDER"'),
    }
    absent = ("timm", "torchvision", "transformers")
    done = run_without_dearkd(PROGRAM, json.dumps(shown), cwd=folder, absent=absent)
    assert done.returncode == 0, done.stderr
    return Elsewhere(students, images, pictures, load_file(folder / "results.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_network(elsewhere: Elsewhere, kind: str) -> None:
    with torch.no_grad():
        expected = elsewhere.students[kind](elsewhere.images[kind])
    for library in ("pt2", "timm", "transformers") if kind == "colour" else ("timm", "transformers"):
        torch.testing.assert_close(elsewhere.results[f"{kind}/{library}"], expected, rtol=0, atol=1e-6)
    loss = torch.nn.functional.cross_entropy(expected, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(elsewhere.results[f"{kind}/loss"], loss)


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_processor_gives_what_dearkd_evaluates_on(elsewhere: Elsewhere, kind: str) -> None:
    in_chans, pixels = KINDS[kind], []
    for picture in elsewhere.pictures:
        picture = picture.convert("L" if in_chans == 1 else "RGB")
        if picture.size != (SIDE, SIDE):
            pixels.append(eval_transform(SIDE, CROP)(picture))
        else:
            pixels.append(torch.from_numpy(np.array(picture).reshape(SIDE, SIDE, in_chans)).permute(2, 0, 1))
    mean, std = (torch.tensor(values[:in_chans]).view(-1, 1, 1) for values in (MEAN, STD))
    expected = (torch.stack(pixels) / 255 - mean) / std
    torch.testing.assert_close(elsewhere.results[f"{kind}/pixels"], expected)
    with torch.no_grad():
        scores = elsewhere.students[kind](expected)[0].softmax(0)
    for snippet in ("card", "manual"):
        torch.testing.assert_close(elsewhere.results[f"{kind}/{snippet}"], scores)


def test_what_transformers_has_tuned_to_other_classes_loads_in_timm(elsewhere: Elsewhere) -> None:
    assert elsewhere.results["tuned"].shape == (3, 5)
    torch.testing.assert_close(elsewhere.results["tuned in timm"], elsewhere.results["tuned"])


def test_a_hub_folder_is_a_model_for_dearkd_too(export: Export, tmp_path: Path) -> None:
    hub = export("hf")
    _, student = make_student(1)
    images = torch.randn(2, 1, SIDE, SIDE)
    again = opened(hub, tmp_path / "cache")
    torch.testing.assert_close(again.load()(images), student(images), rtol=0, atol=1e-6)
    assert (again.class_names, again.image_size) == (NAMES, SIDE)
    assert isinstance(timm.create_model(f"local-dir:{hub}", pretrained=True), Student)
    config = json.loads((hub / CONFIG).read_text())
    once_more = tmp_path / "again"
    once_more.mkdir()
    write_export(again, once_more, "hf", ExportOptions())
    assert json.loads((once_more / CONFIG).read_text()) == config
    # As timm's scripts and transformers' wrapper of timm do.
    named = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    assert named.num_classes == 3
    head = (hub / MODEL_FILE).read_text().split('"""')[1]
    assert "dearkd_trainer.model.mhca" in head
    assert "Apache License" in head
    assert "import dearkd" not in (hub / MODEL_FILE).read_text() + (hub / IMAGES_FILE).read_text()


def test_a_folder_whose_arguments_name_the_classes_goes_on_loading(export: Export, tmp_path: Path) -> None:
    make_folder(tmp_path / "model", 1)
    config = json.loads((tmp_path / "model" / CONFIG).read_text())
    config["model_args"]["num_classes"] = 3  # as they were written up to 0.1
    (tmp_path / "model" / CONFIG).write_text(json.dumps(config))
    out = export("safetensors", tmp_path / "model")
    assert "num_classes" not in json.loads((out / CONFIG).read_text())["model_args"]


def test_a_card_has_the_accuracy_that_was_measured_and_no_other(export: Export, tmp_path: Path) -> None:
    make_folder(tmp_path / "model", 1)
    unmeasured = ModelCard.load(export("hf", tmp_path / "model") / "README.md")
    assert unmeasured.data.eval_results is None
    assert "Accuracy: not recorded" in unmeasured.text
    assert (unmeasured.data.library_name, unmeasured.data.pipeline_tag) == ("transformers", "image-classification")
    evaluation = {"top1": 0.75, "top5": 1.0, "loss": 0.5, "dataset": "ds-held-out"}
    (tmp_path / "model" / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "measured").mkdir()
    write_export(opened(tmp_path / "model", tmp_path / "cache"), tmp_path / "measured", "hf", ExportOptions("mit"))
    measured = ModelCard.load(tmp_path / "measured" / "README.md")
    found = [
        (one.task_type, one.dataset_name, one.metric_type, one.metric_name, one.metric_value)
        for one in measured.data.eval_results
    ]
    about = ("image-classification", "ds-held-out", "accuracy")
    assert found == [(*about, "top-1", 0.75), (*about, "top-5", 1.0)]
    assert measured.data.license == "mit"
    assert measured.data.to_dict()["model-index"][0]["name"] == "model"


def test_an_onnx_file_says_what_it_takes_and_normalises_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx
    import onnxruntime

    student = make_folder(tmp_path / "model", 1)
    monkeypatch.setenv("DEARKD_CACHE_DIR", str(tmp_path / "cache"))
    options = ["--to", "onnx", "--preprocess", "--opset", "19", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "model"), str(tmp_path / "out"), *options])
    assert ended.value.code == 0
    assert 0 <= json.loads(capsys.readouterr().out)["difference"] <= 1e-4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.onnx"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["mean"] == MEAN[:1]
    path = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(str(path))
    assert [entry.version for entry in onnx.load(path).opset_import if not entry.domain] == [19]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert said.pop("architecture") == "dearkd_micro_patch8_32"
    assert said.pop("interpolation") == "bicubic"
    assert {name: json.loads(text) for name, text in said.items()} == {
        "class_names": NAMES,
        "mean": MEAN[:1],
        "std": STD[:1],
        "image_size": SIDE,
        "in_chans": 1,
        "crop_pct": CROP,
        "preprocess": True,
    }
    (taken,) = session.get_inputs()
    assert (taken.type, taken.shape) == ("tensor(uint8)", ["batch", SIDE, SIDE, 1])
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 1), np.uint8)
    (logits,) = session.run(["logits"], {"images": pixels})
    normalised = (torch.from_numpy(pixels.transpose(0, 3, 1, 2)) / 255 - MEAN[0]) / STD[0]
    np.testing.assert_allclose(logits, student(normalised).detach().numpy(), rtol=0, atol=1e-4)


def test_an_opset_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    student = make_student(1)[1]

    def refused(opset: int) -> str:
        with pytest.raises(InvalidInput) as caught:
            onnx_export.export_onnx(student, tmp_path / "model.onnx", in_chans=1, image_size=SIDE, opset=opset)
        return caught.value.message

    for opset in (17, 1000):
        assert all(word in refused(opset) for word in (f"opset is {opset}", "begins at 18", "leave it out"))
    nothing = onnx.helper.make_graph([], "nothing", [], [])
    unconverted = onnx.helper.make_model(nothing, opset_imports=[onnx.helper.make_opsetid("", 18)])
    # A conversion that fails leaves the graph as it was, and says so to nobody.
    monkeypatch.setattr(onnx_export, "_write", lambda model, path, example, opset: onnx.save(unconverted, path))
    assert "cannot convert the graph to it: choose an older one" in refused(20)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *args, **kwargs: 1 / 0)
    assert "does not read the file" in refused(18)


def test_a_graph_with_other_answers_is_not_let_through() -> None:
    model = torch.nn.Flatten()
    with pytest.raises(DearKDError, match=r"a runtime's logits differ from torch's by 1,") as caught:
        require_same(lambda images: model(images) + 1, model, GraphInput(1, 2), whose="a runtime")
    assert caught.value.code == "not_equal"
    assert require_same(model, model, GraphInput(1, 2), whose="a runtime") == 0
