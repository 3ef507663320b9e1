"""The way from a file or folder to what the API takes: the spec of a teacher, and its weights as safetensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from safetensors.torch import save_file
from torch import Tensor

from dearkd.errors import InvalidInput, reason
from dearkd.specs import TeacherSpec
from dearkd.teacher_files.checkpoints import Weights, listed, read_weights
from dearkd.teacher_files.config_folders import ConfigFolder, read_folder
from dearkd.teacher_files.file_kinds import kind_of
from dearkd.teacher_files.foreign_names import recognise
from dearkd.teacher_files.matching import Match, match
from dearkd.teacher_files.namings import NAMINGS, TRANSFORMERS_RESNET, transformers_twin
from dearkd.teacher_files.text_arguments import without_text
from dearkd.vision.architectures import (
    TORCHVISION,
    TRANSFORM_INPUT,
    TRANSFORMING,
    in_library,
    published_input,
    require_known,
)
from dearkd.vision.teachers import blueprint, in_words
from dearkd.vision.weight_files import read_header, require_fit

HALVED = 32
"""Sides that this divides are even wherever a network halves its maps, and all of them are padded alike."""

FLAGS = {"image_size": "--image-size", "mean": "--mean", "std": "--std"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFile:
    """A teacher as it is uploaded."""

    body: dict[str, Any]
    """A valid `TeacherSpec` as JSON."""
    weights: Path
    """A safetensors file of exactly the architecture's tensors."""
    remarks: tuple[str, ...]
    """Lines on what was done and found, and on what was assumed."""


def read_teacher(
    source: Path, given: Mapping[str, Any], scratch: Path, *, state_dict: str | None = None
) -> TeacherFile:
    """Read a teacher, whatever form it has, without running anything that the file brings.

    Args:
        source: a file of weights, or a folder with a `config.json`.
        given: fields of `TeacherSpec` that override what is found; `architecture` may also be `torchvision:NAME`.
            `name` is required.
        scratch: a folder for safetensors that have to be written.
        state_dict: the key of the state dict to take where a file holds several.

    Raises:
        InvalidInput: naming what was found, and what to do; with code `usage` where fields must be given.
    """
    folder = read_folder(source) if source.is_dir() else None
    file = folder.weights if folder is not None else source
    kind = kind_of(file)
    weights = read_weights(file, kind, state_dict)
    _require_batch_norm(weights, file)
    fields = {**(folder.fields if folder is not None else {}), **given}
    _require_config(weights, folder, fields)
    try:
        _drop_text(fields)
        found = match(weights, fields.get("architecture"), fields.get("model_args") or {})
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error.message}", code=error.code, errors=error.errors) from None
    done = [*found.remarks, *(folder.remarks if folder is not None else ())]
    if "architecture" not in given:
        done.append(f"it is a {found.architecture}" + ("" if "architecture" in fields else ", the only one that fits"))
    remarks = [f"{file.name}: {'; '.join(done)}"] if done else []
    body = {**fields, **_of_match(found, fields, file)}
    body |= _defaults(body, remarks)
    spec = TeacherSpec.check(body)
    _require_same_size(found, spec)
    remarks += _padded_otherwise(found, spec)
    same = kind == "safetensors" and found.tensors is weights.tensors
    safetensors = file if same else _written(found.tensors, scratch)
    header = read_header(safetensors)
    require_fit(in_words(spec), blueprint(spec, len(header)), header)
    return TeacherFile(body=body, weights=safetensors, remarks=tuple(remarks))


def _require_batch_norm(weights: Weights, file: Path) -> None:
    if not any(name.endswith("running_mean") for name in weights.tensors):
        raise InvalidInput(
            f"{file} holds {len(weights.tensors)} tensors ({listed(weights.tensors)}) and none called running_mean: "
            "the network has no BatchNorm, or it was folded away, and images are made from its statistics. Use a CNN "
            "with BatchNorm, and the weights as they were trained",
            code="no_batch_norm",
        )


def _require_config(weights: Weights, folder: ConfigFolder | None, fields: dict[str, Any]) -> None:
    """Fill in the architecture of a ResNet of transformers, which only its `config.json` tells."""
    ours = recognise(weights.tensors, NAMINGS) is TRANSFORMERS_RESNET
    if folder is None or folder.transformers is None:
        if ours:
            raise InvalidInput(
                "the names are those of transformers' ResNet, and the tensors do not tell where it halves its maps: "
                "give the folder with its config.json"
            )
        return
    twin = transformers_twin(dict(folder.transformers))
    if twin is None:
        raise InvalidInput(
            f"{folder.weights.parent} holds a ResNet of transformers that timm has no twin of (layer_type, depths, "
            "hidden_act, embedding_size or downsample_in_… of its config.json): take a ResNet-18 to -152",
            code="no_twin",
        )
    fields.setdefault("architecture", twin.architecture)
    fields["model_args"] = {**twin.model_args, **(fields.get("model_args") or {})}


def _drop_text(fields: dict[str, Any]) -> None:
    architecture, arguments = fields.get("architecture"), fields.get("model_args")
    if architecture is not None and arguments and not architecture.startswith(TORCHVISION):
        require_known(architecture)
        fields["model_args"] = without_text(architecture, arguments)


def _of_match(found: Match, fields: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The fields that the tensors decide, checked against those that were said."""
    for name, told in (
        ("num_classes", "tells {} classes apart, by the shape of its classifier"),
        ("in_chans", "takes {} channels, by the shape of its first convolution"),
    ):
        own = getattr(found, name)
        said = fields.get(name, own)
        if said != own:
            raise InvalidInput.at(
                f"/{name}",
                f"{file} {told.format(own)}, and not {said}: leave --{name.replace('_', '-')} out, or give the weights "
                "that were meant",
            )
    return {
        "architecture": found.architecture,
        "model_args": dict(found.model_args),
        "num_classes": found.num_classes,
        "in_chans": found.in_chans,
    }


def _defaults(body: Mapping[str, Any], remarks: list[str]) -> dict[str, Any]:
    """Image size, mean and standard deviation where nothing says them: those of timm's own weights of that network."""
    missing = [name for name in FLAGS if name not in body]
    if body["architecture"] in TRANSFORMING and "mean" in body and TRANSFORM_INPUT not in body["model_args"]:
        remarks.append(
            f"no file tells whether {in_library(body['architecture'])} transforms its input, as with torchvision's own "
            f"weights and what was trained on from them: then add --model-arg {TRANSFORM_INPUT}=true, else =false"
        )
    if not missing:
        return {}
    cfg = published_input(body["architecture"], body["model_args"])
    flags = ", ".join(FLAGS[name] for name in missing)
    if body["in_chans"] != 3 or cfg is None or cfg.input_size[0] != 3 or cfg.input_size[1] != cfg.input_size[2]:
        raise InvalidInput(
            f"nothing says how its images were made, and what is known is of square ones of 3 channels: give {flags}",
            code="usage",
        )
    known = {"image_size": cfg.input_size[1], "mean": list(cfg.mean), "std": list(cfg.std)}
    shown = ", ".join(f"{FLAGS[name]} {_as_flag(known[name])}" for name in missing)
    remarks.append(f"assumed {shown}, as {in_library(body['architecture'])} has it: give what was otherwise")
    return {name: known[name] for name in missing}


def _as_flag(value: Any) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, list) else str(value)


def _require_same_size(found: Match, spec: TeacherSpec) -> None:
    largest = found.naming.largest_image if found.naming is not None else None
    if largest is not None and spec.image_size > largest:
        raise InvalidInput.at(
            "/image_size",
            f"of images of {spec.image_size} px timm's {spec.architecture} computes something else than "
            f"{found.naming and found.naming.library}'s: give an --image-size of at most {largest}",
        )


def _padded_otherwise(found: Match, spec: TeacherSpec) -> list[str]:
    """A remark where the library pads otherwise, unless the network was built for this image size."""
    usual = published_input(spec.architecture, spec.model_args)
    if found.naming is None or not found.naming.pads_as_built or usual is None:
        return []
    sides = {usual.input_size[1], spec.image_size}
    if len(sides) == 1 or not any(side % HALVED for side in sides):
        return []
    return [
        f"{found.naming.library} pads for the image size that a network was built for, by default "
        f"{usual.input_size[1]} px: unless this one was built for {spec.image_size} px, answers differ a little here"
    ]


def _written(tensors: Mapping[str, Tensor], scratch: Path) -> Path:
    """The tensors as safetensors takes them: contiguous, and no two of one memory."""
    path = scratch / "weights.safetensors"
    try:
        save_file({name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}, path)
    except Exception as error:  # of sparse, quantised or meta tensors torch and safetensors each say no in their way
        raise InvalidInput(
            f"the weights cannot be written as safetensors ({reason(error)}): save them as plain float32 tensors"
        ) from error
    return path
