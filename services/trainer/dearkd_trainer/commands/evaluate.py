"""The work of `dearkd evaluate`."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dearkd.choices import FolderOrder
from dearkd.cli.output import connect, note, print_json, print_table
from dearkd.settings import Settings
from dearkd.storage.file_cache import FileCache
from dearkd.storage.new_folder import new_folder
from dearkd.vision.devices import choose_device
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.commands.sources import TrainedModel, open_dataset, open_model, recorded_rows
from dearkd_trainer.evaluate.attention import recorded_distances
from dearkd_trainer.evaluate.evaluation import evaluate, normalised_sample
from dearkd_trainer.evaluate.pictures import attention_distance_picture, confusion_picture
from dearkd_trainer.evaluate.report import ATTENTION, report_of, write_evaluation
from dearkd_trainer.model.student import Student


def run_evaluate(
    reference: str,
    dataset: str,
    *,
    out: Path | None,
    batch_size: int,
    as_json: bool,
    split: str | None = None,
    class_order: FolderOrder | None = None,
) -> None:
    """Evaluate a model, print what was found, and leave pictures in `out` where one is named."""
    opened = partial(open_dataset, dataset, split=split, class_order=class_order)
    settings = Settings()
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    with FileCache(settings.cache_dir, settings.cache_bytes) as cache:
        if out is None:
            model = open_model(reference, connect, cache)
            report = _report(model, opened(model, connect, cache), dataset, batch_size)
        else:
            with new_folder(out) as folder:
                model = open_model(reference, connect, cache)
                report = _report(model, opened(model, connect, cache), dataset, batch_size)
                _write(folder, report, model)
    if as_json:
        print_json(report)
    else:
        _print(report, out)


def _report(
    model: TrainedModel, dataset: AbstractContextManager[ShardDataset], reference: str, batch_size: int
) -> dict[str, Any]:
    device = choose_device()
    network = model.load().to(device)
    about, size = model.config.pretrained_cfg, model.image_size
    with dataset as data:
        found = evaluate(
            network,
            data,
            image_size=size,
            mean=about.mean,
            std=about.std,
            crop_pct=about.crop_pct,
            batch_size=batch_size,
            device=device,
        )
        sample = normalised_sample(data, size, about.mean, about.std, crop_pct=about.crop_pct)
        heads = network.attention_distances(sample.to(device)) if isinstance(network, Student) else []
        samples = np.bincount(data.labels, minlength=model.num_classes).tolist()
    return report_of(found, heads, model.class_names, samples) | {"model": model.name, "dataset": reference}


def _write(folder: Path, report: dict[str, Any], model: TrainedModel) -> None:
    write_evaluation(folder, report)
    names = [row["name"] for row in report["per_class"]]
    if report["confusion"] is not None:
        (folder / "confusion.png").write_bytes(confusion_picture(report["confusion"], names))
    distances = report["attention_distance"]
    if not distances["heads"]:
        return
    series = {**recorded_distances(recorded_rows(model, connect)), "now": distances["layers"]}
    (folder / ATTENTION).write_bytes(attention_distance_picture(series, distances["heads"]))


def _print(report: dict[str, Any], out: Path | None) -> None:
    print_table(
        ["CLASS", "IMAGES", "ACCURACY"],
        [
            [row["name"], f"{row['samples']:,}", "–" if row["accuracy"] is None else f"{row['accuracy']:.2%}"]
            for row in report["per_class"]
        ],
    )
    print()
    print_table(
        ["ALL", ""],
        [
            ["images", f"{report['samples']:,}"],
            ["top-1", f"{report['top1']:.2%}"],
            ["top-5", f"{report['top5']:.2%}"],
            ["loss", _number(report["loss"])],
            ["expected calibration error", _number(report["expected_calibration_error"])],
            [
                "attention distance by layer, pixels",
                " ".join(f"{distance:.1f}" for distance in report["attention_distance"]["layers"]),
            ],
        ],
    )
    if out is None:
        note("--out DIR also writes the confusion matrix and the attention distances, as JSON and as pictures")
    else:
        note(", ".join(str(path) for path in sorted(out.iterdir())))


def _number(value: float | None) -> str:
    return "no finite number" if value is None else f"{value:.4f}"
