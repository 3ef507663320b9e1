"""Folders as timm and the Hugging Face Hub have them: weights, and a `config.json` that says what they are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dearkd.errors import InvalidInput

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
"""The file that says how images are made, in folders of transformers."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".tar")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFolder:
    """The weights of a folder, and what its files say of them."""

    weights: Path
    fields: Mapping[str, Any]
    """Fields of `TeacherSpec`, as far as the files have them."""
    transformers: Mapping[str, Any] | None = None
    """The `config.json` of transformers' ResNet, of which the architecture is found later; None for one of timm."""
    remarks: tuple[str, ...] = ()


def read_folder(folder: Path) -> ConfigFolder:
    """The contents of a folder.

    Raises:
        InvalidInput: if `config.json` or the weights are missing, cannot be read, or are of a network that is no
            teacher here; the message says what to do.
    """
    if not (folder / CONFIG).is_file():
        found = sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES)
        remedy = f"give the file of weights itself ({', '.join(found[:5])})" if found else "give the file of weights"
        raise InvalidInput(f"{folder} has no {CONFIG}, as folders of timm and Hugging Face have: {remedy}")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise InvalidInput(
            f"{folder} has a {CONFIG}, but neither {' nor '.join(WEIGHTS)}: copy the weights there, or give their file"
        )
    config = _read(folder / CONFIG)
    try:
        return _contents(folder, weights, config)
    except (TypeError, ValueError, AttributeError) as error:  # a list where an object should be, and the like
        raise InvalidInput(
            f"{folder / CONFIG} has a field of another form than timm and transformers write ({error}): mend it, or "
            "give the file of weights itself, with flags"
        ) from None


def _contents(folder: Path, weights: Path, config: dict[str, Any]) -> ConfigFolder:
    kind = config.get("model_type")
    if "architecture" in config:
        fields, remarks = _of_timm(config)
        return ConfigFolder(weights=weights, fields=fields, remarks=remarks)
    if kind is None:
        raise InvalidInput(
            f"{folder / CONFIG} has neither timm's 'architecture' nor transformers' 'model_type': give the file of "
            "weights itself, with --architecture"
        )
    if kind != "resnet":
        name = next(iter(config.get("architectures") or ()), kind)
        raise InvalidInput(
            f"{folder / CONFIG} is of transformers' {name}, of which ResNet alone is read, whose twin in timm computes "
            "the same: take a teacher from timm's own folders on the Hub (hf-hub:timm/…), or give the "
            "file of weights with --architecture if their names are timm's",
            code="no_twin",
        )
    fields, remarks = _of_transformers(config, folder)
    return ConfigFolder(weights=weights, fields=fields, transformers=config, remarks=remarks)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} holds no JSON ({error}): copy or download it again") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{path} holds a JSON {type(value).__name__}, not an object: copy or download it again")
    return value


def _of_timm(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    nested = config.get("pretrained_cfg")
    cfg = {**(nested if isinstance(nested, dict) else config), **_given(config, "num_classes", "label_names")}
    remarks: list[str] = []
    # Tags of pretrained weights are no part of an architecture's name.
    fields: dict[str, Any] = {"architecture": str(config["architecture"]).partition(".")[0]}
    arguments = {key: value for key, value in (config.get("model_args") or {}).items() if value is not None}
    if isinstance(pool := config.get("global_pool"), str) and pool:
        arguments.setdefault("global_pool", pool)
    size, channels = cfg.get("input_size"), arguments.pop("in_chans", None)
    if isinstance(size, list) and len(size) == 3:
        channels = channels or size[0]
        if size[1] == size[2]:
            fields["image_size"] = size[1]
        else:
            remarks.append(f"left out an input_size of {size[1]}×{size[2]}: images are square here")
    if channels is not None:
        fields["in_chans"] = channels
    classes = arguments.pop("num_classes", None) or cfg.get("num_classes")
    if classes:
        fields["num_classes"] = classes
    if arguments:
        fields["model_args"] = arguments
    for name in ("mean", "std"):
        if isinstance(cfg.get(name), list):
            fields[name] = [float(number) for number in cfg[name]]
    labels = cfg.get("label_names", cfg.get("labels"))
    fields |= _class_names(labels, classes, "label_names", remarks)
    if (crop := cfg.get("crop_pct")) not in (None, 1, 1.0):
        remarks.append(f"crop_pct {crop} is left out: it is for photographs, of which synthesis makes none")
    return fields, tuple(remarks)


def _of_transformers(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    remarks: list[str] = []
    fields: dict[str, Any] = {"in_chans": config.get("num_channels", 3)}
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        fields["num_classes"] = len(labels)
        if not all(str(name) == f"LABEL_{key}" for key, name in labels.items()):  # else they were never given
            fields |= _class_names(labels, len(labels), "id2label", remarks)
    if (folder / PREPROCESSOR).is_file():
        images = _read(folder / PREPROCESSOR)
        size = images.get("crop_size", images.get("size"))
        if isinstance(size, dict):
            size = size.get("shortest_edge", size.get("height"))
        if isinstance(size, int):
            fields["image_size"] = size
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            if isinstance(images.get(theirs), list):
                fields[ours] = [float(number) for number in images[theirs]]
    return fields, tuple(remarks)


def _class_names(labels: Any, classes: Any, key: str, remarks: list[str]) -> dict[str, Any]:
    """Names in the order of labels, from a list or from an object of labels and names."""
    if not labels:
        return {}
    names = labels
    if isinstance(labels, dict):
        names = [labels.get(str(label)) for label in range(len(labels))]
    if not isinstance(names, list) or None in names or len(names) != classes:
        remarks.append(f"left out {key}: they are not one for each of {classes} classes")
        return {}
    return {"class_names": [str(name) for name in names]}


def _given(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: config[key] for key in keys if key in config}
