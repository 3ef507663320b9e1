"""Models and datasets that a command line names: by id, fetched over HTTP and verified, or as local folders."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import typer
from torch import nn

from dearkd.answers import Checkpoint
from dearkd.choices import FolderOrder
from dearkd.cli.output import note
from dearkd.cli.references import identifier_of
from dearkd.client import Client
from dearkd.data.dataset_splits import choose_shards
from dearkd.data.folder_walk import Skipped, kind_of_name
from dearkd.data.image_files import is_grey
from dearkd.data.image_folder import ImageFolder, Reading, read_folder
from dearkd.data.json_files import read_json
from dearkd.data.manifests import DatasetManifest
from dearkd.data.shard_files import Shard
from dearkd.data.shard_info import CLASS_NAMES, INFO, read_class_names, read_info
from dearkd.data.shard_reader import Reader
from dearkd.errors import CorruptData, InvalidInput, NotFound, Unavailable
from dearkd.identifiers import is_id
from dearkd.specs.class_order import count_remedy, is_counted, other_order, share_names, uncertain_order
from dearkd.storage.catalog import Model, StoredFile
from dearkd.storage.file_cache import FileCache, verify_copy
from dearkd.vision.passing_shards import PassingShards
from dearkd.vision.shards import ShardDataset
from dearkd.vision.students import StudentConfig
from dearkd_trainer.commands.checkpoints import fetch_model
from dearkd_trainer.data.image_files import ImageFiles
from dearkd_trainer.evaluate.report import METRICS
from dearkd_trainer.model.export import CARD, CONFIG, SAMPLES, WEIGHTS, load_model

FILES = (WEIGHTS, CONFIG, CARD, SAMPLES)
MANIFEST = "model.json"
DATASET_MANIFEST = "dataset.json"

ManifestT = TypeVar("ManifestT", Model, DatasetManifest)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A student's files on this machine."""

    name: str
    """Its id, or the folder as it was given."""
    files: Mapping[str, Path]
    raw_config: Mapping[str, Any]
    config: StudentConfig
    manifest: Model | None
    """None for a folder without `model.json`, and for a checkpoint."""
    checkpoint: Checkpoint | None = None
    """The run's checkpoint that it is, as the API lists it."""

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def in_chans(self) -> Literal[1, 3]:
        return self.config.pretrained_cfg.input_size[0]

    @property
    def image_size(self) -> int:
        return self.config.pretrained_cfg.input_size[1]

    @property
    def class_names(self) -> list[str]:
        return list(self.config.class_names)

    def load(self) -> nn.Module:
        """The network in eval mode, on the CPU."""
        return load_model(self.raw_config, self.files[WEIGHTS])


def open_model(
    reference: str, connect: Callable[[], Client], cache: FileCache, *, epoch: int | None = None
) -> TrainedModel:
    """The model of an id (`mdl-…`), of a run's checkpoint (`run-…`), or in a folder that holds `model.safetensors` and
    `config.json`.

    Args:
        reference: the id, or the folder.
        connect: gives a client of the API, for an id.
        cache: keeps verified copies, for as long as it is open.
        epoch: of a run, the epoch at whose end the checkpoint was made; None: its newest.

    Raises:
        NotFound: if there is no such model, run or checkpoint.
        InvalidInput: if it is neither, or its `config.json` or `model.json` is not ours.
        CorruptData: if a file is not what the manifest says.
    """
    if is_id(reference, "run"):
        with connect() as client:
            checkpoint, files = fetch_model(client, reference, epoch, cache)
        name = f"{reference}-epoch-{checkpoint.epoch}"
        return TrainedModel(name, files, *_read_config(files[CONFIG]), None, checkpoint)
    reference = _of_name(reference, "model", connect)
    if is_id(reference, "mdl"):
        with connect() as client:
            manifest = client.get_model(reference)
            download = partial(client.download_model_file, reference, resume=False)
            wanted = [file for file in manifest.files if file.name in FILES]
            files = {file.name: _cached(cache, file, download) for file in wanted}
        missing = [name for name in (WEIGHTS, CONFIG) if name not in files]
        if missing:
            raise CorruptData(f"{reference} names no {missing[0]} among its files: {sorted(files)}")
        return TrainedModel(reference, files, *_read_config(files[CONFIG]), manifest)
    folder = Path(reference)
    if not folder.is_dir():
        raise InvalidInput(
            f"{reference!r} is neither the id of a model (mdl-…) nor a name that the API knows, nor a folder here"
        )
    files = {name: folder / name for name in FILES if (folder / name).is_file()}
    missing = [name for name in (WEIGHTS, CONFIG) if name not in files]
    if missing:
        raise InvalidInput(f"{folder} holds no {missing[0]}: give a folder that a run or an export has left")
    stored = None
    if (folder / MANIFEST).is_file():
        stored = _read_manifest(Model, folder / MANIFEST, "the manifest of a model")
        for file in stored.files:
            if file.name in files:
                _verify(files[file.name], file)
    return TrainedModel(reference, files, *_read_config(files[CONFIG]), stored)


def _of_name(reference: str, kind: Literal["model", "dataset"], connect: Callable[[], Client]) -> str:
    """The id of a model or dataset that is called so, where there is no folder of that name and an API to ask."""
    if Path(reference).exists() or is_id(reference, "mdl") or is_id(reference, "ds"):
        return reference
    try:
        with connect() as client:
            return identifier_of(client, reference, kind)
    except (NotFound, Unavailable, typer.BadParameter):
        return reference


def recorded_rows(model: TrainedModel, connect: Callable[[], Client]) -> list[dict[str, Any]]:
    """The metrics of the run that made a model; none where they are not at hand any more, or are damaged."""
    if not is_id(model.name, "mdl"):
        path = Path(model.name) / METRICS
        try:
            return _read_rows(path) if path.is_file() else []
        except InvalidInput as error:
            note(error.message)
            return []
    try:
        with connect() as client:
            rows = client.list_metrics(model.manifest.run) if model.manifest is not None else ()
            return [row.model_dump(exclude_unset=True) for row in rows]
    except (NotFound, InvalidInput):
        return []


def _read_rows(path: Path) -> list[dict[str, Any]]:
    what, remedy = "a row of metrics", "what the run recorded is left out"
    return [
        read_json(dict[str, Any], line, where=f"{path}, line {number},", what=what, remedy=remedy)
        for number, line in enumerate(path.read_bytes().splitlines(), start=1)
    ]


@contextmanager
def open_dataset(
    reference: str,
    model: TrainedModel,
    connect: Callable[[], Client],
    cache: FileCache,
    *,
    split: str | None = None,
    class_order: FolderOrder | None = None,
) -> Iterator[ShardDataset]:
    """The dataset of an id (`ds-…`), or of a folder: `*.tar` shards, or a folder of images for each class.

    A folder of shards is checked against its `dataset.json` where it has one; without one, those that `_info.json`
    names are read, else all. The shards of an id are fetched one after another as the dataset is read, once and in
    order, each for as long as it is needed (`PassingShards`). Class folders that the model names count in its order.
    Images of other channels than the model's are converted.

    Raises:
        InvalidInput: if it is none of these, its classes are not the model's, or a JSON file beside the
            shards is damaged.
        CorruptData: naming the shard that is not what the manifest says, or the sample that cannot be read.
    """
    reference = _of_name(reference, "dataset", connect)
    if is_id(reference, "ds"):
        with connect() as client:
            manifest = client.get_dataset(reference)
            _require_same_task(reference, manifest, model)
            download = partial(client.download_dataset_file, reference, resume=False)
            yield PassingShards(
                manifest.shards,
                lambda shard, taken: _cached(taken, shard, download),
                lambda: FileCache(cache.root, cache.max_bytes),
                num_classes=model.num_classes,
                in_chans=model.in_chans,
            )
        return
    folder = Path(reference)
    if not folder.is_dir():
        raise InvalidInput(
            f"{reference!r} is neither the id of a dataset (ds-…) nor a name that the API knows, nor a folder here"
        )
    if any(folder.glob("*.tar")):
        if class_order is not None:
            raise InvalidInput(f"--class-order is for class folders, but {reference} holds shards: leave it out")
        yield _dataset(_local_shards(folder, reference, model, split), model)
        return
    reading = Reading(split=split, class_order=class_order, usual_names=model.class_names, in_chans=model.in_chans)
    source = read_folder(folder, reading)
    assert isinstance(source, ImageFolder)
    names = [name for name, _ in source.classes]
    order = class_order or ("given" if source.is_listed else None)
    _require_same_classes(reference, len(names), names, model, order=order)
    for _ in source.check():
        pass
    for what, count in {**source.summary().get("converted", {}), **source.summary()["skipped"]}.items():
        note(f"{reference}: {what}: {count:,}")
    yield ImageFiles(source.images, num_classes=model.num_classes, in_chans=model.in_chans)


def _dataset(paths: list[Path], model: TrainedModel) -> ShardDataset:
    return ShardDataset(paths, num_classes=model.num_classes, in_chans=model.in_chans)


def _local_shards(folder: Path, reference: str, model: TrainedModel, split: str | None) -> list[Path]:
    if (folder / DATASET_MANIFEST).is_file():
        manifest = _read_manifest(DatasetManifest, folder / DATASET_MANIFEST, "the manifest of a dataset")
        _require_same_task(reference, manifest, model)
        for shard in manifest.shards:
            if not (folder / shard.name).is_file():
                raise CorruptData(f"{shard.name} is named by {folder / DATASET_MANIFEST}, but is not there")
            _verify(folder / shard.name, shard)
        return [folder / shard.name for shard in manifest.shards]
    if (folder / CLASS_NAMES).is_file():
        names = read_class_names((folder / CLASS_NAMES).read_bytes(), str(folder / CLASS_NAMES))
        _require_same_classes(reference, len(names), names, model)
    paths, skipped = sorted(path for path in folder.glob("*.tar") if kind_of_name(path.name) is None), Skipped()
    if (folder / INFO).is_file() and split is None:
        paths = [folder / name for name in read_info((folder / INFO).read_bytes(), str(folder / INFO))]
        for path in paths:
            if not path.is_file():
                raise CorruptData(f"{path.name} is named by {folder / INFO}, but is not there")
    else:
        paths = choose_shards(paths, split, folder, skipped)
    for what, count in skipped.counts.items():
        note(f"{reference}: {what}: {count:,}")
    _say_channels(reference, Counter(channels for path in paths for channels in _channels(path)), model)
    return paths


def _channels(shard: Path) -> Iterator[int]:
    """1 or 3 for each image of a shard, by its header alone."""
    reader = Reader(shard)
    for record in reader:
        with reader.open_image(record) as image:
            yield 1 if is_grey(image) else 3


def _require_same_task(reference: str, dataset: DatasetManifest, model: TrainedModel) -> None:
    names = [c.name for c in dataset.classes]
    _require_same_classes(reference, dataset.num_classes, names, model, said=dataset.class_order is not None)
    for line in dataset.conversions(model.in_chans):
        note(f"{reference}: {line}, since {model.name} takes {model.in_chans} channel(s)")


def _say_channels(reference: str, images: Counter[int], model: TrainedModel) -> None:
    """Say how many images will be converted to the model's channels, as Pillow converts them."""
    taken = model.in_chans
    others = images[4 - taken]
    if others:
        change = "colour images are made grey" if taken == 1 else "grey images are made colour"
        note(f"{reference}: {others:,} {change}, since {model.name} takes {taken} channel(s)")


def _require_same_classes(
    reference: str,
    num_classes: int,
    names: list[str],
    model: TrainedModel,
    *,
    said: bool = False,
    order: str | None = None,
) -> None:
    """Require labels to mean the same.

    Args:
        reference: the dataset.
        num_classes, names: of it.
        model: that is to be evaluated.
        said: True if the dataset's maker gave the order of its classes.
        order: the order of this model's classes as the user gives it; then numbers as a model's class names are taken
            for its outputs.

    Raises:
        InvalidInput: if they do not, or that cannot be known.
    """
    if num_classes != model.num_classes:
        remedy = count_remedy(model.class_names, names, whose="the model")
        raise InvalidInput(
            f"{reference} has {num_classes} classes, but {model.name} tells {model.num_classes} apart: {remedy}, in a "
            f"{CLASS_NAMES} beside the images"
        )
    if order is not None and is_counted(model.class_names):
        return
    difference = other_order(names, model.class_names)
    if difference is not None:
        raise InvalidInput(
            f"{reference} has the classes of {model.name} in another order ({difference}). Its labels must be made "
            "again in the model's order: other names alone would leave them as they are. For class folders, put a "
            "class_names.json in the model's order beside them, or say --class-order where the model's classes are "
            "numbers, and then run `dearkd dataset add`"
        )
    if said or order is not None or share_names(names, model.class_names):
        return
    if (orders := uncertain_order(names)) is not None:
        raise InvalidInput(
            f"{model.name} names none of the classes of {reference}, whose order is not certain: {orders}. Add them "
            "again with `dearkd dataset add --class-order name|natural|number`, as its teacher was trained (for class "
            "folders, --class-order here does as well)"
        )


def _read_config(path: Path) -> tuple[dict[str, Any], StudentConfig]:
    text = path.read_bytes()
    remedy = "give a folder that a run or an export has left"
    config = read_json(StudentConfig, text, where=str(path), what=f"the {CONFIG} of a trained student", remedy=remedy)
    return json.loads(text), config


def _read_manifest(kind: type[ManifestT], path: Path, what: str) -> ManifestT:
    return read_json(kind, path.read_bytes(), where=str(path), what=what, remedy="fetch it again, or remove it")


def _verify(path: Path, file: StoredFile | Shard) -> None:
    verify_copy(path, name=file.name, sha256=file.sha256, size=file.bytes)


def _cached(cache: FileCache, file: StoredFile | Shard, download: Callable[[str, Path], None]) -> Path:
    return cache.obtain(partial(download, file.name), name=file.name, sha256=file.sha256, size=file.bytes)
