"""Folders of timm and of Hugging Face: their `config.json` fills every flag."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from tests.support.teacher_files import CLASSES, SMALL, Add, difference, plain, rebuilt, refusal, small, trained

NAMES = ["ant", "bee", "cow", "dog", "emu"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as timm writes it for the Hub."""
    path = tmp_path / "hub"
    timm.models.save_for_hf(small(), path, model_config={"label_names": NAMES}, safe_serialization="both")
    return path


def change(folder: Path, **fields: Any) -> None:
    """Change the `config.json`; None removes a field."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize("left", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_timm_says_all(add: Add, folder: Path, left: str) -> None:
    for name in {"model.safetensors", "pytorch_model.bin"} - {left}:
        (folder / name).unlink()
    found = add(folder)
    assert found.body == {
        "name": "t",
        "architecture": SMALL,
        "model_args": {},
        "num_classes": CLASSES,
        "in_chans": 3,
        "image_size": 160,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "class_names": NAMES,
    }
    assert difference(rebuilt(found), small(), 32) == 0
    assert "crop_pct 0.95 is left out" in found.remarks[0]
    assert (found.weights.parent == folder) == (left == "model.safetensors")


def test_flags_override_the_file(add: Add, folder: Path) -> None:
    given = {"image_size": 64, "mean": [0.1] * 3, "std": [0.2] * 3, "class_names": ["a", "b", "c", "d", "e"]}
    assert add(folder, **given).body.items() >= given.items()
    assert "9" in refusal(lambda: add(folder, num_classes=9))


def test_the_older_form_of_timm_is_read(add: Add, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    flat = {**config["pretrained_cfg"], "architecture": f"{SMALL}.r160_in1k", "num_classes": CLASSES, "labels": NAMES}
    (folder / "config.json").write_text(json.dumps(flat))
    assert add(folder).body["class_names"] == NAMES


def test_names_that_are_not_one_a_class_are_left_out_aloud(add: Add, folder: Path) -> None:
    for labels in (NAMES[:3], {"0": "ant", "7": "bee"}, 7):
        change(folder, label_names=labels)
        found = add(folder)
        assert "class_names" not in found.body
        assert "left out label_names" in found.remarks[0]
    change(folder, label_names={str(label): name for label, name in enumerate(NAMES)})
    assert add(folder).body["class_names"] == NAMES


def test_arguments_in_words_are_dropped_where_they_change_nothing_and_else_refused(add: Add, folder: Path) -> None:
    change(folder, model_args={"global_pool": "avg", "act_layer": "relu"})
    assert add(folder).body["model_args"] == {}
    for argument in ({"global_pool": "max"}, {"act_layer": "silu"}, {"checkpoint_path": "/etc/passwd"}):
        change(folder, model_args=argument)
        said = refusal(lambda: add(folder))
        assert next(iter(argument)) in said
    change(folder, model_args=None, global_pool="max")
    assert "global_pool" in refusal(lambda: add(folder))


def test_arguments_in_numbers_are_kept(add: Add, folder: Path) -> None:
    model = trained(timm.create_model("resnet18", num_classes=CLASSES, layers=[1, 1, 1, 1]))
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    found = add(folder)
    assert found.body["model_args"] == {"layers": [1, 1, 1, 1]}
    assert difference(rebuilt(found), model, 64) == 0


def test_an_image_size_that_is_not_square_is_left_out(add: Add, folder: Path) -> None:
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    change(folder, pretrained_cfg=cfg | {"input_size": [3, 128, 160]})
    found = add(folder)
    assert "128×160" in found.remarks[0]
    assert "--image-size 160" in found.remarks[1]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "holds no JSON"),
        ("[]", "JSON list"),
        ("{}", "neither timm's 'architecture'"),
        ('{"model_type": "convnext", "architectures": ["ConvNextForImageClassification"]}', "ConvNextForImage"),
        ('{"model_type": "regnet"}', "regnet"),
    ],
)
def test_a_config_that_is_of_no_use_is_refused_by_what_it_is(add: Add, folder: Path, content: str, named: str) -> None:
    (folder / "config.json").write_text(content)
    assert named in refusal(lambda: add(folder))


@pytest.mark.parametrize(
    "fields",
    [
        {"model_args": [1]},
        {"model_args": {"layers": {}}},
        {"num_classes": "many", "model_args": {}},
        {"architecture": 3},
        {"pretrained_cfg": {"mean": ["x"] * 3}},
        {"pretrained_cfg": {"mean": 0.5, "std": [], "input_size": "large"}},
        {"pretrained_cfg": {"input_size": ["3", "8", "8"]}},
        {"architecture": None, "model_type": "resnet", "depths": "deep", "id2label": [1]},
        {"architecture": None, "model_type": ["resnet"], "architectures": 3},
    ],
)
def test_fields_of_another_form_are_refused_in_words(add: Add, folder: Path, fields: dict[str, Any]) -> None:
    change(folder, **fields)
    refusal(lambda: add(folder))


def test_what_a_folder_lacks_is_named(add: Add, folder: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        (folder / name).unlink()
    assert "model.safetensors" in refusal(lambda: add(folder))
    (folder / "config.json").unlink()
    (folder / "best.pth").write_bytes(b"x")
    said = refusal(lambda: add(folder))
    assert "config.json" in said
    assert "best.pth" in said


RESNETS = {
    "basic": {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [1, 2, 1, 1]},
    "bottleneck": {"layer_type": "bottleneck", "depths": [1, 1, 1, 1]},
}


@pytest.mark.slow
@pytest.mark.parametrize("layer", RESNETS)
def test_a_resnet_of_transformers_answers_the_same(add: Add, tmp_path: Path, layer: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(**RESNETS[layer], id2label=dict(enumerate(NAMES)))
    theirs = trained(transformers.ResNetForImageClassification(config))
    theirs.save_pretrained(tmp_path / "hub")
    images = {"size": {"shortest_edge": 64}, "crop_pct": 0.875, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(images))
    found = add(tmp_path / "hub")
    assert found.body.items() >= {"class_names": NAMES, "image_size": 64, "mean": [0.1] * 3, "std": [0.2] * 3}.items()
    assert difference(rebuilt(found), theirs, 64) < 1e-4


def of_transformers(folder: Path, **fields: Any) -> None:
    """A ResNet-18 under the names of transformers, as `save_pretrained` writes it."""
    folder.mkdir()
    state = {}
    for name, tensor in plain(timm.create_model("resnet18", num_classes=CLASSES)).items():
        module, _, kind = name.rpartition(".")
        if module.startswith("layer"):
            stage, place, part, *_ = module.split(".")
            kinds = {"conv1": "layer.0.convolution", "bn1": "layer.0.normalization", "conv2": "layer.1.convolution"}
            kinds |= {"bn2": "layer.1.normalization", "downsample": "shortcut.convolution"}
            inner = "shortcut.normalization" if module.endswith("downsample.1") else kinds[part]
            module = f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{place}.{inner}"
        else:
            embedder = "resnet.embedder.embedder"
            names = {"conv1": f"{embedder}.convolution", "bn1": f"{embedder}.normalization", "fc": "classifier.1"}
            module = names[module]
        state[f"{module}.{kind}"] = tensor
    save_file(state, folder / "model.safetensors")
    config = {"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2], "num_channels": 3}
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_a_resnet_of_transformers_becomes_one_of_timm(add: Add, tmp_path: Path) -> None:
    of_transformers(tmp_path / "hub", id2label={str(label): f"LABEL_{label}" for label in range(CLASSES)})
    found = add(tmp_path / "hub")
    assert found.body["architecture"] == "resnet18"
    assert "class_names" not in found.body  # LABEL_0 was never given by anybody
    assert "transformers" in found.remarks[0]


@pytest.mark.parametrize("field", ["downsample_in_first_stage", "downsample_in_bottleneck"])
def test_a_resnet_that_timm_has_no_twin_of_is_refused(add: Add, tmp_path: Path, field: str) -> None:
    of_transformers(tmp_path / "hub", **{field: True})
    assert "no twin" in refusal(lambda: add(tmp_path / "hub"))


def test_without_its_config_a_resnet_of_transformers_is_refused(add: Add, tmp_path: Path) -> None:
    of_transformers(tmp_path / "hub")
    assert "config.json" in refusal(lambda: add(tmp_path / "hub" / "model.safetensors"))
