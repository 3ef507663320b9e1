"""The work of `dearkd export`."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dearkd.cli.hub_push import push_folder
from dearkd.cli.output import connect, note, print_json
from dearkd.data.json_files import read_json
from dearkd.identifiers import is_id
from dearkd.settings import Settings
from dearkd.storage.catalog import Accuracy, describe_file
from dearkd.storage.file_cache import FileCache
from dearkd.storage.new_folder import new_folder
from dearkd_trainer.commands.sources import TrainedModel, open_model
from dearkd_trainer.evaluate.report import EVALUATION
from dearkd_trainer.model.export import CARD, CONFIG, SAMPLES, WEIGHTS, without_classes
from dearkd_trainer.model.graph import GraphInput
from dearkd_trainer.model.hub_files import write_hub_files
from dearkd_trainer.model.onnx_export import OPSET, export_onnx
from dearkd_trainer.model.pt2_export import export_pt2
from dearkd_trainer.model.student import family_of
from dearkd_trainer.record.card import UNKNOWN_LICENCE, for_hub, plain_card, with_licence

Format = Literal["safetensors", "onnx", "pt2", "hf"]
ONNX, PT2 = "model.onnx", "model.pt2"
RUNS = {"onnx": "ONNX Runtime", "pt2": "the exported program"}


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The choices of an export that one format or another has."""

    licence: str | None = None
    """The licence of the weights, for the model card (hf); None leaves the card's."""
    preprocess: bool = False
    """True puts the normalisation into the graph (onnx, pt2)."""
    opset: int | None = None
    """The version of the graph's operators (onnx); None is `OPSET`."""
    push: str | None = None
    """The repository on the Hub to upload the folder to (hf)."""
    public: bool = False
    """True makes a new repository one for everybody to see."""
    epoch: int | None = None
    """The epoch of the run whose checkpoint is exported; None: the newest checkpoint."""


def run_export(reference: str, directory: Path, to: Format, options: ExportOptions, *, as_json: bool) -> None:
    """Export a model and say what was written."""
    settings = Settings()
    with FileCache(settings.cache_dir, settings.cache_bytes) as cache, new_folder(directory) as folder:
        model = open_model(reference, connect, cache, epoch=options.epoch)
        more = write_export(model, folder, to, options)
    if model.checkpoint is not None:
        more["checkpoint"] = model.checkpoint.model_dump(include={"id", "epoch", "stage", "step"})
    if options.push is not None:
        more["pushed"] = push_folder(directory, options.push, "model", public=options.public)
    files = [describe_file(path).model_dump() for path in sorted(directory.iterdir())]
    if as_json:
        print_json({"model": reference, "format": to, "directory": str(directory), "files": files, **more})
        return
    print(directory)
    note(", ".join(f"{file['name']} ({file['bytes']:,} bytes)" for file in files))
    if model.checkpoint is not None:
        note(f"of the checkpoint after {model.checkpoint.epoch} epochs, step {model.checkpoint.step}")
    if "difference" in more:
        note(f"logits of {RUNS[to]} differ from torch's by {more['difference']:.1e} at most")


def write_export(model: TrainedModel, folder: Path, to: Format, options: ExportOptions) -> dict[str, Any]:
    """Write a model's files in a format; returns what else there is to say.

    `safetensors` is the weights and timm's `config.json`; `hf` has beside them the model card, the network's code and
    what transformers reads; `onnx` and `pt2` are `model.onnx` or `model.pt2` and the same `config.json`, for the
    input's size, mean and std and the names of classes.
    """
    network = model.load()  # first: a folder that does not load is not handed on
    config = {**model.raw_config, "model_args": without_classes(model.raw_config["model_args"])}
    if to in ("onnx", "pt2"):
        difference = _write_graph(model, network, folder, to, options, config)
        _write_config(folder, config)
        return {"difference": difference}
    code = family_of(config["architecture"]).hub_code() if to == "hf" else None
    if code is not None:
        config = write_hub_files(folder, code, model.files[WEIGHTS], config, model.class_names)
    else:
        shutil.copyfile(model.files[WEIGHTS], folder / WEIGHTS)
    _write_config(folder, config)
    if to == "hf":
        card = _card(model, options.licence)
        if CARD in model.files and SAMPLES in model.files:
            shutil.copyfile(model.files[SAMPLES], folder / SAMPLES)  # the card shows it
        (folder / CARD).write_text(for_hub(card) if code is not None else card, encoding="utf-8")
    return {}


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(_json(config) + "\n", encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _write_graph(
    model: TrainedModel,
    network: nn.Module,
    folder: Path,
    to: Format,
    options: ExportOptions,
    config: Mapping[str, Any],
) -> float:
    given = model.config.pretrained_cfg
    normalise = (given.mean, given.std) if options.preprocess else None
    if to == "pt2":
        images = GraphInput(model.in_chans, model.image_size, normalise)
        return export_pt2(network, folder / PT2, images, files={CONFIG: _json(config)})
    about = {
        "architecture": config["architecture"],
        "class_names": model.class_names,
        "image_size": model.image_size,
        "in_chans": model.in_chans,
        "mean": given.mean,
        "std": given.std,
        "crop_pct": given.crop_pct,
        "interpolation": config["pretrained_cfg"].get("interpolation", "bicubic"),
        "preprocess": options.preprocess,
    }
    return export_onnx(
        network,
        folder / ONNX,
        in_chans=model.in_chans,
        image_size=model.image_size,
        normalise=normalise,
        opset=options.opset if options.opset is not None else OPSET,
        metadata={name: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for name, v in about.items()},
    )


def _card(model: TrainedModel, licence: str | None) -> str:
    """The card that was written when the model was made; without one, a card from the other files."""
    if CARD not in model.files:
        name, kind = Path(model.name).resolve().name, family_of(model.raw_config["architecture"]).kind
        found = _recorded_accuracy(model)
        return plain_card(
            name,
            kind,
            model.raw_config,
            accuracy={"top-1": found.top1, "top-5": found.top5} if found is not None else {},
            evaluated_on=found.dataset if found is not None else None,
            licence=licence or UNKNOWN_LICENCE,
        )
    card = model.files[CARD].read_text(encoding="utf-8")
    return with_licence(card, licence) if licence is not None else card


def _recorded_accuracy(model: TrainedModel) -> Accuracy | None:
    """The accuracy that the run measured, by the manifest or by the `evaluation.json` of a run's folder."""
    if model.manifest is not None:
        return model.manifest.accuracy
    path = Path(model.name) / EVALUATION
    if is_id(model.name, "mdl") or not path.is_file():
        return None
    what, remedy = "the evaluation of a run", "remove it, and the card says nothing of accuracy"
    return read_json(Accuracy, path.read_bytes(), where=str(path), what=what, remedy=remedy)
