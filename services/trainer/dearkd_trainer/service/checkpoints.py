"""A run's checkpoints between its folder and storage, so that another worker can go on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dearkd.documents import as_written
from dearkd.errors import CorruptData, NotFound
from dearkd.storage.catalog import describe_file
from dearkd.storage.checkpoints import (
    CheckpointFile,
    StoredCheckpoint,
    checkpoint_key,
    from_beginning,
    pointer_key,
    read_pointer,
)
from dearkd.storage.objects import Storage
from dearkd_trainer.record.checkpoint import BEST, LAST


def store_checkpoint(
    storage: Storage,
    run: str,
    folder: Path,
    before: StoredCheckpoint,
    *,
    keep: int,
    about: Mapping[str, Any] | None = None,
) -> StoredCheckpoint:
    """Store a committed checkpoint under names of its content, then the pointer to it, then delete the oldest.

    So a checkpoint is whole or the one before stands, and an attempt that lost its lease damages none.

    Args:
        storage: where to.
        run: whose checkpoint it is.
        folder: where it lies.
        before: what was stored last.
        keep: how many checkpoints stay stored.
        about: what is to be known of it: the fields of `CheckpointFile`.
    """
    files = [
        _described(folder / name, about if name == LAST else None) for name in (LAST, BEST) if (folder / name).exists()
    ]
    known = {checkpoint_key(run, file) for file in before.files}
    for file in files:
        if checkpoint_key(run, file) not in known:
            storage.put(checkpoint_key(run, file), folder / file.name)
    made = {file.id for file in files}
    passed = [file for file in before.named(LAST) if file.id not in made]
    after = StoredCheckpoint(files=files, earlier=passed[: keep - 1])
    storage.put(pointer_key(run), as_written(after).model_dump_json(indent=2).encode())
    kept = {checkpoint_key(run, file) for file in (*after.files, *after.earlier)}
    for file in (*before.files, *before.earlier):
        if checkpoint_key(run, file) not in kept:
            storage.delete(checkpoint_key(run, file))
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
    stored = read_pointer(storage, run)
    if stored is None:
        return StoredCheckpoint()
    checkpoints = stored.named(LAST)
    while checkpoints:
        try:
            _fetch(storage, run, checkpoints[0], folder)
            break
        except CorruptData as error:
            if len(checkpoints) < 2:
                raise CorruptData(
                    f"no checkpoint of {run} is whole: {error.message}; or {from_beginning(run)}"
                ) from None
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


def _described(path: Path, about: Mapping[str, Any] | None) -> CheckpointFile:
    return CheckpointFile(**describe_file(path).model_dump(), **(about or {}))


def _fetch(storage: Storage, run: str, file: CheckpointFile, folder: Path) -> None:
    try:
        storage.download(checkpoint_key(run, file), folder / file.name, sha256=file.sha256)
    except NotFound as error:
        raise CorruptData(f"{error.message}, but {pointer_key(run)} names it") from None
