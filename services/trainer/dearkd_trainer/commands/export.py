"""The work of `dearkd export`."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from dearkd.cli.output import connect, note, print_json
from dearkd.settings import Settings
from dearkd.storage.catalog import describe_file
from dearkd.storage.file_cache import FileCache
from dearkd.storage.new_folder import new_folder
from dearkd_trainer.commands.sources import TrainedModel, open_model
from dearkd_trainer.model.export import CARD, CONFIG, WEIGHTS
from dearkd_trainer.model.onnx_export import export_onnx
from dearkd_trainer.model.student import family_of
from dearkd_trainer.record.card import UNKNOWN_LICENCE, plain_card, with_licence

Format = Literal["safetensors", "onnx", "hf"]
ONNX = "model.onnx"


def run_export(reference: str, directory: Path, to: Format, *, licence: str | None, as_json: bool) -> None:
    """Export a model and say what was written."""
    settings = Settings()
    with FileCache(settings.cache_dir, settings.cache_bytes) as cache, new_folder(directory) as folder:
        model = open_model(reference, connect, cache)
        more = write_export(model, folder, to, licence=licence)
    files = [describe_file(path).model_dump() for path in sorted(directory.iterdir())]
    if as_json:
        print_json({"model": reference, "format": to, "directory": str(directory), "files": files, **more})
        return
    print(directory)
    note(", ".join(f"{file['name']} ({file['bytes']:,} bytes)" for file in files))
    if "difference" in more:
        note(f"ONNX Runtime's logits differ from torch's by {more['difference']:.1e} at most")


def write_export(model: TrainedModel, folder: Path, to: Format, *, licence: str | None = None) -> dict[str, Any]:
    """Write a model's files in a format; returns what else there is to say.

    `safetensors` is the weights and timm's `config.json`; `hf` has the model card beside them; `onnx` is `model.onnx`
    and the same `config.json`, for the input's size, mean and std and the names of classes.
    """
    network = model.load()
    (folder / CONFIG).write_text(json.dumps(model.raw_config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if to == "onnx":
        difference = export_onnx(network, folder / ONNX, in_chans=model.in_chans, image_size=model.image_size)
        return {"difference": difference}
    shutil.copyfile(model.files[WEIGHTS], folder / WEIGHTS)
    if to == "hf":
        (folder / CARD).write_text(_card(model, licence), encoding="utf-8")
    return {}


def _card(model: TrainedModel, licence: str | None) -> str:
    """The card that was written when the model was made; without one, a card from the files alone."""
    if CARD not in model.files:
        name, kind = Path(model.name).resolve().name, family_of(model.raw_config["architecture"]).kind
        return plain_card(name, kind, model.raw_config, licence=licence or UNKNOWN_LICENCE)
    card = model.files[CARD].read_text(encoding="utf-8")
    return with_licence(card, licence) if licence is not None else card
