"""The work of `dearkd evaluate`."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dearkd.choices import FolderOrder
from dearkd.cli.output import connect, note, print_json, print_table
from dearkd.settings import Settings
from dearkd.storage.file_cache import FileCache
from dearkd.storage.new_folder import new_folder
from dearkd.vision.devices import choose_device
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.commands.sources import TrainedModel, open_dataset, open_model, recorded_rows
from dearkd_trainer.evaluate.attention import recorded_distances
from dearkd_trainer.evaluate.evaluation import evaluate, normalised, sample_places
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
            report = _report(model, opened(model, connect, cache), dataset, batch_size, with_bar=not as_json)
        else:
            with new_folder(out) as folder:
                model = open_model(reference, connect, cache)
                report = _report(model, opened(model, connect, cache), dataset, batch_size, with_bar=not as_json)
                _write(folder, report, model)
    if as_json:
        print_json(report)
    else:
        _print(report, out)


def _report(
    model: TrainedModel,
    dataset: AbstractContextManager[ShardDataset],
    reference: str,
    batch_size: int,
    *,
    with_bar: bool,
) -> dict[str, Any]:
    """Evaluate in one pass over the dataset, whose shards may be let go behind it."""
    device = choose_device()
    network = model.load().to(device)
    about, size = model.config.pretrained_cfg, model.image_size
    with dataset as data, _bar(with_bar) as bar:
        task = bar.add_task("images", total=len(data))
        places, kept, seen = sample_places(len(data), data.in_chans, size), list[Tensor](), 0

        def look(pixels: Tensor) -> None:
            nonlocal seen
            kept.append(pixels[places[(places >= seen) & (places < seen + len(pixels))] - seen])
            seen += len(pixels)
            bar.advance(task, len(pixels))

        found = evaluate(
            network,
            data,
            image_size=size,
            mean=about.mean,
            std=about.std,
            crop_pct=about.crop_pct,
            batch_size=batch_size,
            device=device,
            look=look,
        )
        sample = normalised(torch.cat(kept), about.mean, about.std)
        heads = network.attention_distances(sample.to(device)) if isinstance(network, Student) else []
        samples = np.bincount(data.labels, minlength=model.num_classes).tolist()
    return report_of(found, heads, model.class_names, samples) | {"model": model.name, "dataset": reference}


def _bar(shown: bool) -> Progress:
    """A bar of images on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))


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
