"""A trained student as files: `model.safetensors` and the `config.json` that rebuilds it, as timm itself writes them.

A folder of both loads by `timm.create_model("local-dir:FOLDER", pretrained=True)` in any process that has imported
`dearkd_trainer`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import timm
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dearkd.errors import InvalidInput
from dearkd.specs import StudentSpec, Task
from dearkd.vision.weight_files import separate_state
from dearkd_trainer.model.student import Student
from dearkd_trainer.record.checkpoint import write_atomically

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
REPORT = "report.html"
SAMPLES = "samples.png"
"""The picture of synthetic training images that the card shows, where there is one."""


def model_config(spec: StudentSpec, student: Student, task: Task, *, crop_pct: float = 1.0) -> dict[str, Any]:
    """`config.json`, as timm reads it: the architecture, its arguments, and in `pretrained_cfg` what its input is.

    Args:
        spec: that the student was made of.
        student: its weights do not matter.
        task: the student's.
        crop_pct: as in `recipe.eval_transform`.
    """
    pooling = student.global_pool if isinstance(student.global_pool, str) else None
    heads = student.classifiers
    arguments = student.model_args(spec, task.num_classes, task.in_chans)
    return {
        "architecture": spec.architecture,
        "num_classes": task.num_classes,
        "num_features": student.num_features,
        **({"global_pool": pooling} if pooling is not None else {}),
        **({"label_names": list(task.class_names)} if task.class_names is not None else {}),
        "model_args": without_classes(arguments),
        "pretrained_cfg": {
            "num_classes": task.num_classes,
            "input_size": [task.in_chans, spec.image_size, spec.image_size],
            "fixed_input_size": student.pretrained_cfg.get("fixed_input_size", False),
            "crop_pct": crop_pct,
            "interpolation": "bicubic",
            "mean": task.mean,
            "std": task.std,
            "first_conv": student.pretrained_cfg["first_conv"],
            "classifier": list(heads) if len(heads) > 1 else heads[0],
        },
    }


def without_classes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `timm.create_model` without the number of classes.

    Who reads timm's configurations gives it beside these (timm's scripts, transformers' wrapper of timm): twice is an
    error. timm itself takes it from `pretrained_cfg`.
    """
    return {name: value for name, value in arguments.items() if name != "num_classes"}


def save_model(directory: Path, model: nn.Module, config: Mapping[str, Any]) -> Path:
    """Write both files to a directory; returns where the weights lie."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = separate_state(model)
    write_atomically(directory / CONFIG, lambda part: part.write_text(json.dumps(config, indent=2) + "\n"))
    return write_atomically(directory / WEIGHTS, lambda part: save_file(tensors, part))


def load_model(config: Mapping[str, Any], weights: Path) -> nn.Module:
    """The model in eval mode, on the CPU.

    Args:
        config: from `model_config`.
        weights: a safetensors file.

    Raises:
        InvalidInput: if the configuration builds no model, or the file does not hold the weights of that model.
    """
    try:
        name = config["architecture"]
        arguments = {"num_classes": config.get("num_classes"), **config["model_args"]}  # older ones have it there
        model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"the {CONFIG} beside {weights} builds no model: {error!r}") from error
    try:
        tensors = load_file(weights)
        if missing := model.state_dict().keys() - tensors.keys():  # a plain ViT's, say, which a student would take
            raise RuntimeError(f"it lacks {', '.join(sorted(missing)[:5])}")
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InvalidInput(f"{weights} does not hold the weights of {name}: {error}") from error
    return model.eval()
