"""Models of a run's checkpoints, fetched over HTTP and verified: the run may go on meanwhile."""

from functools import partial
from pathlib import Path

import torch

from dearkd.answers import Checkpoint
from dearkd.cli.output import note
from dearkd.client import Client
from dearkd.errors import CorruptData, NotFound
from dearkd.identifiers import sibling
from dearkd.specs import Task, TrainingSpec
from dearkd.storage.file_cache import FileCache
from dearkd_trainer.data.recipe import eval_crop_pct
from dearkd_trainer.model.export import CONFIG, WEIGHTS, model_config, save_model
from dearkd_trainer.model.student import create_student
from dearkd_trainer.record.checkpoint import read_state

TRIES = 3
"""Times that the newest checkpoint is looked up: another may take its place before it is fetched."""


def fetch_model(client: Client, run: str, epoch: int | None, cache: FileCache) -> tuple[Checkpoint, dict[str, Path]]:
    """The model that a run's checkpoint holds.

    Args:
        client: of the API that has the run.
        run: its id.
        epoch: at whose end the checkpoint was made; None: the newest one.
        cache: keeps the files for as long as it is open.

    Returns:
        The checkpoint as the API lists it, and the model's files by name.

    Raises:
        NotFound: if the run has no such checkpoint, or keeps it no longer.
        CorruptData: if what came is no checkpoint, or not the one that is listed.
    """
    for left in reversed(range(TRIES)):
        checkpoint = _choose(client, run, epoch)
        try:
            path = _download(client, run, checkpoint, cache)
            break
        except NotFound:
            if epoch is not None or not left:
                raise
    return checkpoint, write_model(path, cache.folder("checkpoint"), _class_names(client, run))


def write_model(checkpoint: Path, folder: Path, class_names: list[str] | None) -> dict[str, Path]:
    """Write the model that a checkpoint holds: the weights that the run would evaluate and export there.

    Args:
        checkpoint: a run's.
        folder: to write to.
        class_names: in the order of labels, if they are known: a checkpoint has none.

    Returns:
        The files by name.

    Raises:
        CorruptData: if it cannot be read, or is no checkpoint of a run.
        NewerSchema: if a newer version of dearkd made it.
        InvalidInput: if a version of dearkd made it that is too old.
    """
    state = read_state(checkpoint, remedy="fetch it again", other="export with the version that trains")
    spec = TrainingSpec.stored(state["spec"])
    fields = {name: state["data"][name] for name in ("num_classes", "in_chans", "mean", "std")}
    task = Task.stored({**fields, "image_size": spec.student.image_size, "class_names": class_names})
    with torch.random.fork_rng(devices=[]):
        student = create_student(spec.student, task.num_classes, task.in_chans)
    student.load_state_dict(state["student"] if state["average"] is None else state["average"])
    config = model_config(spec.student, student, task, crop_pct=eval_crop_pct(spec.augmentation))
    save_model(folder, student, config)
    return {name: folder / name for name in (WEIGHTS, CONFIG)}


def _choose(client: Client, run: str, epoch: int | None) -> Checkpoint:
    found = list(client.list_checkpoints(run))
    if epoch is None and found:
        return found[0]
    for checkpoint in found:
        # In the midst of an epoch there are no figures, and what is there is no epoch's model.
        if checkpoint.epoch == epoch and checkpoint.metrics is not None:
            return checkpoint
    if not found:
        raise NotFound(f"{run} has no checkpoint yet: see checkpoint_every and checkpoint_seconds of its spec")
    kept = ", ".join(str(checkpoint.epoch) for checkpoint in found if checkpoint.metrics is not None)
    raise NotFound(
        f"{run} keeps no checkpoint of the end of epoch {epoch}, but of {kept or 'none'}: it makes one every "
        "checkpoint_every epochs, and keeps the last keep_checkpoints of them; leave --epoch out for the newest"
    )


def _download(client: Client, run: str, checkpoint: Checkpoint, cache: FileCache) -> Path:
    if not checkpoint.files:
        raise CorruptData(f"checkpoint {checkpoint.id} of {run} lists no file")
    file = checkpoint.files[0]
    # Nobody will ask for that temporary place again.
    download = partial(client.download_checkpoint_file, run, checkpoint.id, file.name, resume=False)
    try:
        return cache.obtain(download, name=file.name, sha256=file.sha256, size=file.bytes)
    except NotFound as error:
        raise NotFound(
            f"{run} has deleted the checkpoint before it was fetched ({error.message}): raise keep_checkpoints of "
            "later runs, or pause this one meanwhile"
        ) from None


def _class_names(client: Client, run: str) -> list[str] | None:
    """The names of the classes of a run's dataset; None, which is said, if that is gone."""
    dataset = str(client.get_job(run).spec["dataset"])
    try:
        manifest = client.get_dataset(sibling(dataset, "ds"))
    except NotFound:
        note(f"the dataset of {run} is gone, and with it the names of its classes: they are numbers")
        return None
    return [found.name for found in manifest.classes]
