"""Checkpoints of runs in storage, under `runs/{id}/checkpoints/`: another worker goes on from them."""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from dearkd.errors import CorruptData, NotFound, Unreadable
from dearkd.storage.catalog import StoredFile, describe_file
from dearkd.storage.objects import Storage
from dearkd_trainer.record.checkpoint import BEST, LAST


class StoredCheckpoint(BaseModel):
    """The pointer `checkpoint.json`, written last: the files of the checkpoint, with sizes and hashes."""

    files: list[StoredFile] = Field(default_factory=list)
    earlier: list[StoredFile] = Field(default_factory=list)
    """The checkpoints before it that are kept, latest first: a run goes on from the first of all that is whole."""


def store_checkpoint(
    storage: Storage, run: str, folder: Path, before: StoredCheckpoint, *, keep: int
) -> StoredCheckpoint:
    """Store a committed checkpoint under names of its content, then the pointer to it, then delete the oldest.

    So a checkpoint is whole or the one before stands, and an attempt that lost its lease damages none.

    Args:
        storage: where to.
        run: whose checkpoint it is.
        folder: where it lies.
        before: what was stored last.
        keep: how many checkpoints stay stored.
    """
    files = [describe_file(folder / name) for name in (LAST, BEST) if (folder / name).exists()]
    for file in files:
        if file not in before.files:
            storage.put(_checkpoint_key(run, file), folder / file.name)
    passed = [file for file in (*before.files, *before.earlier) if file.name == LAST and file not in files]
    after = StoredCheckpoint(files=files, earlier=passed[: keep - 1])
    storage.put(_pointer_key(run), after.model_dump_json(indent=2).encode())
    for file in (*before.files, *before.earlier):
        if file not in (*after.files, *after.earlier):
            storage.delete(_checkpoint_key(run, file))
    return after


def fetch_checkpoint(
    storage: Storage, run: str, folder: Path, note: Callable[[str], None] = lambda _: None
) -> StoredCheckpoint:
    """Bring a run's stored checkpoint, if there is one, to where the trainer looks for it.

    If the last one is damaged, the latest earlier one that is whole is taken. The best weights so far, which no run
    goes on from, are left out if damaged or gone. `note` is called in both cases.

    Raises:
        CorruptData: naming what is gone or not what was stored, if no checkpoint is whole.
    """
    try:
        text = storage.read(_pointer_key(run))
    except NotFound:
        return StoredCheckpoint()
    remedy = f"retry the run from its beginning (`dearkd retry {run} --from beginning`)"
    try:
        stored = StoredCheckpoint.model_validate_json(text)
    except ValidationError as error:
        raise Unreadable(_pointer_key(run), remedy, error) from None
    checkpoints = [file for file in stored.files if file.name == LAST] + stored.earlier
    while checkpoints:
        try:
            _fetch(storage, run, checkpoints[0], folder)
            break
        except CorruptData as error:
            if len(checkpoints) < 2:
                raise CorruptData(f"no checkpoint of {run} is whole: {error.message}; or {remedy}") from None
            note(f"{error.message}; the run goes on from the checkpoint before")
            checkpoints = checkpoints[1:]
    beside = []
    for file in stored.files:
        if file.name == LAST:
            continue
        try:
            _fetch(storage, run, file, folder)
            beside.append(file)
        except CorruptData as error:
            note(f"{error.message}; the run goes on without it")
    return StoredCheckpoint(files=[*checkpoints[:1], *beside], earlier=checkpoints[1:])


def _fetch(storage: Storage, run: str, file: StoredFile, folder: Path) -> None:
    try:
        storage.download(_checkpoint_key(run, file), folder / file.name, sha256=file.sha256)
    except NotFound as error:
        raise CorruptData(f"{error.message}, but {_pointer_key(run)} names it") from None


def _pointer_key(run: str) -> str:
    return f"runs/{run}/checkpoints/checkpoint.json"


def _checkpoint_key(run: str, file: StoredFile) -> str:
    return f"runs/{run}/checkpoints/{file.sha256[:16]}-{file.name}"
