"""Checkpoints: written beside, synced, then renamed, so that the last good one always exists."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from dearkd.documents import require_known
from dearkd.errors import CorruptData, InvalidInput
from dearkd.specs import TrainingSpec
from dearkd.vision.weight_files import separate_state

LAST = "last.pt"
BEST = "best.safetensors"
"""The evaluated weights that did best on the held-out part of the training data; its header says which epoch."""
VERSION = 4
"""The schema of `last.pt`. With it rises `Job.newest`, so that no older worker opens one that it cannot read."""
OLDEST = 3
"""The oldest one that is read: its aligners foretell the teacher's features as they are, not in their own measure."""

_JOB = " (of a job: `dearkd retry RUN --from beginning`)"

MAY_CHANGE = {
    "name",
    "priority",
    "resources",
    "workers",
    "eval_every",
    "checkpoint_every",
    "checkpoint_seconds",
    "keep_checkpoints",
    "eval_dataset",
    "webhook",
    "labels",
    "timeout_seconds",
    "max_retries",
}
"""Fields of a spec that do not affect the weights: a run may go on with other values."""


def earlier(number: int) -> str:
    """The file name of the checkpoint so many before the last (0: the last itself)."""
    return LAST if number == 0 else f"last-{number}.pt"


def save_checkpoint(directory: Path, state: Mapping[str, Any], *, keep: int = 1) -> Path:
    """Commit the state of a run as its last checkpoint.

    Args:
        directory: of the run's checkpoints; made if absent.
        state: tensors, numbers, strings, and lists and dicts of them: what `weights_only=True` loads.
        keep: how many checkpoints stay: this one and those before it, `last-1.pt` and so on.

    Returns:
        Where it lies.
    """
    directory.mkdir(parents=True, exist_ok=True)
    return write_atomically(
        directory / LAST,
        lambda part: torch.save({"version": VERSION, **state}, part),
        before=lambda: _move_up(directory, keep),
    )


def save_best(directory: Path, model: nn.Module, row: Mapping[str, Any]) -> None:
    """Commit the weights of a model as the best so far; `row` says what made them so, and stands in their header."""
    tensors = separate_state(model)
    about = {name: str(value) for name, value in row.items()}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / BEST, lambda part: save_file(tensors, part, about))


def load_checkpoint(directory: Path, spec: TrainingSpec, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of the last checkpoint, its tensors on the CPU; None where there is none.

    Args:
        directory: of the run's checkpoints.
        spec: of the run that is to go on.
        data: a description of its training data, as JSON.

    Raises:
        CorruptData: if it cannot be read, or is no checkpoint of a run.
        InvalidInput: if another spec or other data made it, naming what differs.
    """
    path = directory / LAST
    if not path.exists():
        return None
    before = directory / earlier(1)
    remedy = f"put {before.name} in its place" if before.exists() else f"remove it to start from the beginning{_JOB}"
    state = read_state(path, remedy=remedy, other=f"use an empty directory{_JOB}")
    for made, remedy, saved, asked in (
        ("by another spec", "that spec", _completed(state["spec"], spec), comparable(spec)),
        ("from other data", "those data", state["data"], data),
    ):
        if differing := _differences(saved, asked):
            raise InvalidInput(
                f"{path} was made {made} ({'; '.join(differing)}): use {remedy}, or an empty directory{_JOB}"
            )
    return state


def read_state(path: Path, *, remedy: str, other: str) -> dict[str, Any]:
    """The state that a checkpoint file holds, its tensors on the CPU.

    Args:
        path: of the file.
        remedy: for one that is damaged, as a clause.
        other: the remedy for one that is too old.

    Raises:
        CorruptData: if it cannot be read, or is no checkpoint of a run.
        NewerSchema: if a newer version made it.
        InvalidInput: if a version made it that is too old.
    """
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises by the kind of damage: zip, pickle, EOF, key
        raise CorruptData(f"{path} is no readable checkpoint ({error}): {remedy}") from error
    if not isinstance(found, dict) or "version" not in found:
        what = f"a dict of {', '.join(map(str, list(found)[:3]))}" if isinstance(found, dict) else type(found).__name__
        raise CorruptData(f"{path} is no checkpoint of a run, but {what}: {remedy}")
    require_known(found["version"], VERSION, str(path))
    if found["version"] < OLDEST:
        raise InvalidInput(f"{path} is of schema {found['version']}, this code reads {OLDEST} to {VERSION}: {other}")
    state: dict[str, Any] = found
    return state


def comparable(spec: TrainingSpec) -> dict[str, Any]:
    """The part of a spec that must be the same for a run to go on."""
    return spec.model_dump(mode="json", exclude=MAY_CHANGE)


def _completed(saved: Mapping[str, Any], spec: TrainingSpec) -> Mapping[str, Any]:
    """A spec that a checkpoint holds, with the fields that came since; as it is where this code cannot read it."""
    try:
        return comparable(TrainingSpec.stored(spec.model_dump(mode="json", include=MAY_CHANGE) | dict(saved)))
    except ValidationError:
        return saved


def write_atomically(path: Path, write: Callable[[Path], Any], *, before: Callable[[], Any] = lambda: None) -> Path:
    """Have `write` make a file beside, sync it, and put it in the place of `path`, or leave that untouched.

    `before` is called once the new file is whole and the old one still in its place.
    """
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        _sync(part)
        before()
        part.replace(path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return path


def _move_up(directory: Path, keep: int) -> None:
    """Make the last checkpoint the one before the last, and so on, and drop the oldest. `last.pt` stays as it is."""
    for number in range(keep - 1, 0, -1):
        newer, older = directory / earlier(number - 1), directory / earlier(number)
        if newer.exists():
            older.unlink(missing_ok=True)
            _link_or_copy(newer, older)
    kept = {earlier(number) for number in range(1, keep)}
    for path in directory.glob("last-*.pt"):
        if path.name not in kept:
            path.unlink()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
        _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _differences(saved: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in [*saved, *(name for name in asked if name not in saved)]:
        before, now = saved.get(name), asked.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += _differences(before, now, f"{prefix}{name}.")
        elif before != now:
            found.append(f"{prefix}{name} was {before!r}, is {now!r}")
    return found
