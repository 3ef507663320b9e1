"""Inputs of a distillation, in the forms that people have them: a network or its files, and folders of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from dearkd.cli.output import note
from dearkd.data.image_folder import Reading, read_folder
from dearkd.errors import InvalidInput, reason
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.storage.objects import Storage
from dearkd.teacher_files.hub import fetch, is_hub_name
from dearkd.teacher_files.intake import read_teacher
from dearkd.vision.module_teachers import as_teacher
from dearkd.vision.teachers import load_teacher

WANTED = ("image_size", "mean", "std")
"""Fields of a network in memory that only its maker knows, unless it says them as timm's do (`pretrained_cfg`)."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen CNN in eval mode, with timm's interface, and its spec."""

    module: nn.Module
    spec: TeacherSpec


def open_teacher(source: nn.Module | str | Path, given: Mapping[str, Any], state_dict: str | None = None) -> Teacher:
    """The teacher that is meant.

    Args:
        source: a network in memory, a file of weights, a folder with a `config.json`, or `hf-hub:owner/name`.
        given: fields of `TeacherSpec` that win over what is found.
        state_dict: the key of the weights to take where a file holds several.

    Raises:
        InvalidInput: naming what was found, and what is missing or breaks a rule.
    """
    if isinstance(source, nn.Module):
        return _of_module(source, given)
    if is_hub_name(str(source)):
        path = fetch(str(source))
    else:
        path = Path(source)
        if not path.exists():
            raise InvalidInput(f"{source} does not exist: give a file, a folder, hf-hub:owner/name or a network")
    with TemporaryDirectory(prefix="dearkd-teacher-") as scratch:
        found = read_teacher(path, {"name": path.resolve().stem, **given}, Path(scratch), state_dict=state_dict)
        for remark in found.remarks:
            note(remark)
        spec = TeacherSpec.check(found.body)
        return Teacher(load_teacher(spec, found.weights), spec)


def _of_module(network: nn.Module, given: Mapping[str, Any]) -> Teacher:
    cfg = getattr(network, "pretrained_cfg", None) or {}
    said = {"mean": list(cfg.get("mean") or ()), "std": list(cfg.get("std") or ())}
    if cfg.get("input_size"):
        said["image_size"] = cfg["input_size"][1]
    if cfg.get("label_names"):
        said["class_names"] = list(cfg["label_names"])
    fields = {name: value for name, value in said.items() if value} | dict(given)
    missing = [name for name in WANTED if name not in fields]
    if missing:
        raise InvalidInput(
            f"{type(network).__name__} does not say how its images were made: give {', '.join(missing)}", code="usage"
        )
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None:
        raise InvalidInput(f"{type(network).__name__} has no Conv2d layer: a teacher is a CNN with BatchNorm")
    fields.setdefault("in_chans", first.in_channels)
    module = as_teacher(network.eval(), in_chans=fields["in_chans"], image_size=fields["image_size"])
    like = next(module.parameters())
    image = torch.zeros(1, fields["in_chans"], fields["image_size"], fields["image_size"])
    try:
        with torch.no_grad():
            logits = module(image.to(like))
    except Exception as error:  # what a network raises on a size is its own affair
        raise InvalidInput(f"{type(network).__name__} cannot take a {tuple(image.shape)}: {reason(error)}") from error
    named = {"name": type(network).__name__, "architecture": _identifier(cfg.get("architecture"), network)}
    return Teacher(module, TeacherSpec.check({**named, "num_classes": logits.shape[1], **fields}))


def _identifier(architecture: str | None, network: nn.Module) -> str:
    return architecture or type(network).__name__


def pack_images(folder: Path, task: TeacherSpec, target: Path) -> list[Path]:
    """Copy a folder of class folders, or of shards, into shards in `target`, in the teacher's order and channels.

    Raises:
        typer.BadParameter, InvalidInput: naming what is wrong with the folder, or with its classes.
    """
    packed = target / "packed"
    if not packed.is_dir():
        source = read_folder(folder, Reading(usual_names=task.class_names or (), in_chans=task.in_chans))
        for _ in source.check():
            pass
        summary = source.summary()
        if summary.get("classes", task.num_classes) != task.num_classes:
            raise InvalidInput(
                f"{folder} has {summary['classes']} classes, but the teacher tells {task.num_classes} apart: give one "
                "folder for each class of the teacher, empty ones too"
            )
        for what, count in {**summary.get("converted", {}), **summary["skipped"]}.items():
            note(f"{folder}: {what}: {count:,}")
        storage = Storage.open(Settings(storage_url=f"file://{target.absolute()}"))
        storage.delete_prefix("packing")  # of a process that was killed
        try:
            for _ in source.copy_to(storage, "packing"):
                pass
            (target / "packing").rename(packed)
        finally:
            storage.delete_prefix("packing")
    return sorted(packed.glob("*.tar"))
