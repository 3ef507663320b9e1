"""Inputs of a distillation, in the forms that people have them: a network or its files, and folders of images."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import nn

from dearkd.choices import FolderOrder
from dearkd.cli.output import note
from dearkd.cli.teacher_source import name_of
from dearkd.data.image_folder import ImageFolder, Reading, ShardFolder, read_folder
from dearkd.data.image_intake import Channels
from dearkd.errors import InvalidInput, reason
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.specs.class_order import other_order
from dearkd.storage.objects import Storage
from dearkd.teacher_files.hub import fetch, is_hub_name
from dearkd.teacher_files.intake import read_teacher
from dearkd.vision.image_sample import require_classes
from dearkd.vision.module_teachers import as_teacher
from dearkd.vision.teachers import load_teacher, refused_input_sizes

WANTED = ("image_size", "mean", "std")
"""Fields of a network in memory that only its maker knows, unless it says them as timm's do (`pretrained_cfg`)."""


@dataclass(frozen=True)
class Teacher:
    """A frozen CNN in eval mode, with timm's interface, and its spec."""

    module: nn.Module
    spec: TeacherSpec

    @cached_property
    def refused_input_sizes(self) -> list[int]:
        """Sides of images that it does not take, found by trying it once."""
        return refused_input_sizes(self.module, self.spec)


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
        found = read_teacher(path, {"name": name_of(str(source)), **given}, Path(scratch), state_dict=state_dict)
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
    network = copy.deepcopy(network).eval()  # the caller's own stays as it is
    module = as_teacher(network, in_chans=fields["in_chans"], image_size=fields["image_size"])
    like = next(module.parameters())
    image = torch.zeros(1, fields["in_chans"], fields["image_size"], fields["image_size"])
    try:
        with torch.no_grad():
            logits = module(image.to(like))
    except Exception as error:  # what a network raises on a size is its own affair
        raise InvalidInput(f"{type(network).__name__} cannot take a {tuple(image.shape)}: {reason(error)}") from error
    kind = type(network).__name__
    named = {"name": kind, "architecture": cfg.get("architecture") or kind}
    return Teacher(module, TeacherSpec.check({**named, "num_classes": logits.shape[1], **fields}))


def pack_images(folder: Path, task: TeacherSpec, target: Path, class_order: FolderOrder | None = None) -> list[Path]:
    """Copy a folder of class folders, or of shards, into shards in `target`, in the teacher's order and channels.

    Raises:
        typer.BadParameter, InvalidInput: naming what is wrong with the folder, or with its classes.
    """
    packed = target / "packed"
    if not packed.is_dir():
        usual = task.class_names or ()
        source = read_folder(
            folder, Reading(usual_names=usual, class_order=class_order, in_chans=_channels(folder, task))
        )
        for _ in source.check():
            pass
        names = (
            [name for name, _ in source.classes] if isinstance(source, ImageFolder) else cast(ShardFolder, source).names
        )
        if names is not None:
            require_classes(str(folder), names, task)
            difference = other_order(names, task.class_names)
            if difference is not None:
                raise InvalidInput(
                    f"{folder} has the teacher's classes in another order ({difference}): its labels must be made "
                    "again in the teacher's"
                )
        summary = source.summary()
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


def _channels(folder: Path, task: TeacherSpec) -> Channels | None:
    """Channels to store class folders with; shards are copied as they are, and converted when they are read."""
    return None if any(folder.glob("*.tar")) else task.in_chans
