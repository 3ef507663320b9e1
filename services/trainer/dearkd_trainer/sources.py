"""What a command line names: a stored model or dataset by its id, fetched over HTTP and verified, or a local folder."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from torch import nn

from dearkd.cli.image_folder import CLASS_NAMES, read_folder
from dearkd.client import Client
from dearkd.datasets import DatasetManifest, Shard
from dearkd.errors import CorruptData, InvalidInput, NotFound
from dearkd.file_cache import FileCache, verify_copy
from dearkd.identifiers import is_id
from dearkd.resources import Model, StoredFile
from dearkd.settings import Settings
from dearkd.storage import Storage
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.export import CARD, CONFIG, WEIGHTS, load_model

FILES = (WEIGHTS, CONFIG, CARD)
MANIFEST = "model.json"
DATASET_MANIFEST = "dataset.json"


class ModelArguments(BaseModel):
    in_chans: Literal[1, 3]
    img_size: int


class InputConfig(BaseModel):
    mean: list[float]
    std: list[float]


class StudentConfig(BaseModel):
    """What is read of a student's `config.json` here; the whole of it builds the model."""

    num_classes: int
    label_names: list[str] | None = None
    model_args: ModelArguments
    pretrained_cfg: InputConfig


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A student's files on this machine."""

    name: str
    """Its id, or the folder as it was given."""
    files: Mapping[str, Path]
    raw_config: Mapping[str, Any]
    config: StudentConfig
    manifest: Model | None
    """None for a folder without `model.json`."""

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def class_names(self) -> list[str]:
        return self.config.label_names or [str(index) for index in range(self.num_classes)]

    def load(self) -> nn.Module:
        """The network in eval mode, on the CPU."""
        return load_model(self.raw_config, self.files[WEIGHTS])


def open_model(reference: str, connect: Callable[[], Client], cache: FileCache) -> TrainedModel:
    """The model of an id (`mdl-…`), or in a folder that holds `model.safetensors` and `config.json`.

    Args:
        reference: the id, or the folder.
        connect: gives a client of the API, for an id.
        cache: keeps verified copies, for as long as it is open.

    Raises:
        InvalidInput: if it is neither, or its `config.json` is not ours.
        CorruptData: if a file is not what the manifest says.
    """
    if is_id(reference, "mdl"):
        with connect() as client:
            manifest = Model.model_validate(client.get_model(reference))
            download = partial(client.download_model_file, reference)
            wanted = [file for file in manifest.files if file.name in FILES]
            files = {file.name: _cached(cache, file, download) for file in wanted}
        missing = [name for name in (WEIGHTS, CONFIG) if name not in files]
        if missing:
            raise CorruptData(f"{reference} names no {missing[0]} among its files: {sorted(files)}")
        return TrainedModel(reference, files, *_read_config(files[CONFIG]), manifest)
    folder = Path(reference)
    if not folder.is_dir():
        raise InvalidInput(f"{reference!r} is neither the id of a model (mdl-…) nor a folder on this machine")
    files = {name: folder / name for name in FILES if (folder / name).is_file()}
    missing = [name for name in (WEIGHTS, CONFIG) if name not in files]
    if missing:
        raise InvalidInput(f"{folder} holds no {missing[0]}: give a folder that a run or an export has left")
    stored = None
    if (folder / MANIFEST).is_file():
        stored = Model.model_validate_json((folder / MANIFEST).read_text())
        for file in stored.files:
            if file.name in files:
                _verify(files[file.name], file)
    return TrainedModel(reference, files, *_read_config(files[CONFIG]), stored)


def recorded_rows(model: TrainedModel, connect: Callable[[], Client]) -> list[dict[str, Any]]:
    """The metrics of the run that made a model; none where they are not at hand any more."""
    if not is_id(model.name, "mdl"):
        rows = Path(model.name) / "metrics.jsonl"
        return [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []
    try:
        with connect() as client:
            return list(client.list_metrics(model.manifest.run)) if model.manifest is not None else []
    except (NotFound, InvalidInput):
        return []


@contextmanager
def open_dataset(
    reference: str, model: TrainedModel, connect: Callable[[], Client], cache: FileCache
) -> Iterator[ShardDataset]:
    """The dataset of an id (`ds-…`), or of a folder: `*.tar` shards, or a folder of images for each class.

    A folder of shards is checked against its `dataset.json` where it has one. Class folders are packed into shards in a
    temporary folder for as long as the context lasts.

    Raises:
        InvalidInput: if it is none of these, or its classes are not the model's.
        CorruptData: naming the shard that is not what the manifest says, or the sample that cannot be read.
    """
    if is_id(reference, "ds"):
        with connect() as client:
            manifest = DatasetManifest.model_validate(client.get_dataset(reference))
            _require_same_classes(reference, manifest.num_classes, [c.name for c in manifest.classes], model)
            download = partial(client.download_dataset_file, reference)
            paths = [_cached(cache, shard, download) for shard in manifest.shards]
        yield _dataset(paths, model)
        return
    folder = Path(reference)
    if not folder.is_dir():
        raise InvalidInput(f"{reference!r} is neither the id of a dataset (ds-…) nor a folder on this machine")
    if any(folder.glob("*.tar")):
        yield _dataset(_local_shards(folder, reference, model), model)
        return
    with tempfile.TemporaryDirectory(prefix="dearkd-evaluate-") as scratch:
        source = read_folder(folder)
        for _ in source.copy_to(Storage.open(Settings(storage_url=f"file://{scratch}")), "packed"):
            pass
        yield _dataset(_local_shards(Path(scratch) / "packed", reference, model), model)


def _dataset(paths: list[Path], model: TrainedModel) -> ShardDataset:
    return ShardDataset(paths, num_classes=model.num_classes, in_chans=model.config.model_args.in_chans)


def _local_shards(folder: Path, reference: str, model: TrainedModel) -> list[Path]:
    if (folder / DATASET_MANIFEST).is_file():
        manifest = DatasetManifest.model_validate_json((folder / DATASET_MANIFEST).read_text())
        _require_same_classes(reference, manifest.num_classes, [c.name for c in manifest.classes], model)
        for shard in manifest.shards:
            if not (folder / shard.name).is_file():
                raise CorruptData(f"{shard.name} is named by {folder / DATASET_MANIFEST}, but is not there")
            _verify(folder / shard.name, shard)
        return [folder / shard.name for shard in manifest.shards]
    if (folder / CLASS_NAMES).is_file():
        names = json.loads((folder / CLASS_NAMES).read_text())
        _require_same_classes(reference, len(names), names, model)
    return sorted(folder.glob("*.tar"))


def _require_same_classes(reference: str, num_classes: int, names: list[str], model: TrainedModel) -> None:
    if num_classes != model.num_classes:
        raise InvalidInput(f"{reference} has {num_classes} classes, but {model.name} tells {model.num_classes} apart")
    if names != model.class_names and sorted(names) == sorted(model.class_names):
        place = next(i for i, pair in enumerate(zip(names, model.class_names, strict=True)) if pair[0] != pair[1])
        raise InvalidInput(
            f"{reference} has the model's classes in another order: class {place} is {names[place]!r} there and "
            f"{model.class_names[place]!r} in {model.name}; register it with a class_names.json in the model's order"
        )


def _read_config(path: Path) -> tuple[dict[str, Any], StudentConfig]:
    try:
        text = path.read_text()
        return json.loads(text), StudentConfig.model_validate_json(text)
    except ValueError as error:  # pydantic's too
        raise InvalidInput(f"{path} is not the {CONFIG} of a trained student: {error}") from None


def _verify(path: Path, file: StoredFile | Shard) -> None:
    verify_copy(path, name=file.name, sha256=file.sha256, size=file.bytes)


def _cached(cache: FileCache, file: StoredFile | Shard, download: Callable[[str, Path], None]) -> Path:
    return cache.obtain(partial(download, file.name), name=file.name, sha256=file.sha256, size=file.bytes)
