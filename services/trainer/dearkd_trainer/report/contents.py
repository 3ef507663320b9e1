"""The contents of a run's page: figures, curves, tables and pictures, each cut to what a page can show."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

import dearkd
from dearkd.names import printable, printable_json
from dearkd.vision.prediction import Classifier
from dearkd_trainer.evaluate.attention import recorded_distances
from dearkd_trainer.report.charts import Points, line_chart
from dearkd_trainer.report.finished_run import FinishedRun
from dearkd_trainer.report.page import number, percent, render
from dearkd_trainer.report.pictures import embedded, share_map
from dearkd_trainer.report.predictions import Prediction, predict, read_pixels, spread

MOST_CLASSES = 100
"""Classes in the table of results; of more the least accurate are shown."""
MATRIX = 20
"""The most classes of which the confusion is a table; of more it is a picture, up to `PICTURED`."""
PICTURED = 1000
PAIRS = 12
NAME = 80
"""The most characters of a class's name."""
SPEC_CHARACTERS = 60_000
LOSSES = ("loss", "classification", "distillation", "hidden", "eval_loss")
ACCURACIES = {
    "holdout_top1": "held-out training images",
    "eval_top1": "evaluation, top-1",
    "eval_top5": "evaluation, top-5",
}
FIGURES = {
    "teacher_accuracy": "that the teacher gives their label",
    "confidence": "mean probability of the label",
    "intra_class_diversity": "diversity within a class (mean cosine distance)",
    "batch_norm_distance": "distance to the teacher's BatchNorm statistics",
}


def run_page(run: FinishedRun, found: Mapping[str, Any] | None, grid: Image.Image | None) -> str:
    """The whole page of a run.

    Args:
        run: at its end.
        found: its `evaluation.json`.
        grid: a picture of the training images.

    Raises:
        ValueError: if the page is larger than one may be.
    """
    names = [shorten(name) for name in run.names]
    curves, has_switch = _curves(run)
    answers_about, answers = _answers(run, names)
    return render(
        name=shorten(run.name, 200),
        summary=_summary(run),
        figures=_figures(run),
        curves=curves,
        has_switch=has_switch,
        evaluated_on=shorten(run.evaluated_on),
        class_count=len(names),
        classes=_classes(found, names),
        **_confusion(found, names),
        answers_about=answers_about,
        answers=answers,
        attention=_attention(run),
        data_about=_data_about(run),
        data=_data(run),
        samples=embedded(grid) if grid is not None else None,
        teacher=_teacher(run),
        environment=_environment(run),
        use=_use(run),
        spec=_spec(run),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def shorten(text: str, most: int = NAME) -> str:
    """A text on one line, of no more than `most` characters, without any that steer a terminal."""
    shown = printable(" ".join(text.split()))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _summary(run: FinishedRun) -> str:
    spec = run.spec
    images = f"{len(run.trained):,} {'synthetic ' if run.about.synthetic else ''}images"
    taught = f", taught by {shorten(run.teacher.name)}" if run.teacher else ""
    return f"A {run.student.kind} ({spec.student.architecture}) trained on {images}{taught}, in {_epochs(run)} epochs."


def _epochs(run: FinishedRun) -> str:
    one, two = run.spec.stage_one.epochs, run.spec.stage_two.epochs
    return f"{one} + {two}" if one and two else str(one or two)


def _figures(run: FinishedRun) -> list[tuple[str, str]]:
    found, last = run.evaluation, run.rows[-1]
    if found is not None:
        judged = [
            ("top-1", percent(found.top1)),
            ("top-5", percent(found.top5)),
            ("calibration error", percent(found.expected_calibration_error)),
            ("evaluated on", f"{found.samples:,} images"),
        ]
    else:
        held_out = last.get("holdout_top1")
        judged = [("top-1, held-out training images", percent(held_out))] if held_out is not None else []
    parameters = sum(weight.numel() for weight in run.student.parameters())
    return [
        *judged,
        ("parameters", f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters:,}"),
        ("time of the steps", _duration(_seconds(run))),
    ]


def _seconds(run: FinishedRun) -> float | None:
    """The time of all steps; without rates, as of epochs that a restart only finished, none."""
    rates = [row.get("images_per_second") for row in run.rows]
    return sum(len(run.trained) / rate for rate in rates if rate) if all(rates) else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _curves(run: FinishedRun) -> tuple[list[tuple[str, Markup]], bool]:
    def points(name: str) -> Points:
        return [(row["epoch"], row[name]) for row in run.rows if np.isfinite(row.get(name, np.nan))]

    one, two = run.spec.stage_one.epochs, run.spec.stage_two.epochs
    switch = one + 0.5 if one and two else None
    drawn = [
        ("Losses", "losses", {name.replace("_", " "): points(name) for name in LOSSES}, True),
        ("Accuracy", "accuracy", {shown: points(name) for name, shown in ACCURACIES.items()}, False),
        ("Learning rate", "rate", {"learning rate": points("learning_rate")}, False),
        ("Images per second", "speed", {"images per second": points("images_per_second")}, False),
    ]
    charts = [
        (title, line_chart(key, f"{title} by epoch", lines, switch=switch, logarithmic=logarithmic))
        for title, key, lines, logarithmic in drawn
    ]
    return charts, switch is not None


def _classes(found: Mapping[str, Any] | None, names: Sequence[str]) -> list[dict[str, Any]]:
    if found is None:
        return []
    rows = [{**one, "name": names[one["index"]]} for one in found["per_class"]]
    if len(rows) <= MOST_CLASSES:
        return rows
    judged = [row for row in rows if row["accuracy"] is not None]
    return sorted(judged, key=lambda row: row["accuracy"])[:MOST_CLASSES]


def _confusion(found: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    matrix = found["confusion"] if found is not None else None
    if matrix is None:
        return {"confusion": None, "confusion_names": [], "confusion_picture": None, "pairs": []}
    shares = np.asarray(matrix)
    np.fill_diagonal(shares, 0)
    most = np.argsort(-shares, axis=None, kind="stable")[:PAIRS]
    places = [(int(place) // len(names), int(place) % len(names)) for place in most]
    return {
        "confusion": matrix if len(names) <= MATRIX else None,
        "confusion_names": names[:MATRIX],
        "confusion_picture": embedded(share_map(matrix), lossless=True) if MATRIX < len(names) <= PICTURED else None,
        "pairs": [(names[i], names[j], float(shares[i, j])) for i, j in places if shares[i, j] > 0],
    }


def _answers(run: FinishedRun, names: Sequence[str]) -> tuple[str, list[tuple[str, list[Prediction]]]]:
    """Predictions on images that were not trained on: those of the evaluation, else those that were held out."""
    data, samples = run.dataset, run.held_out
    if run.eval_dataset is not None:
        data, samples = run.eval_dataset, np.arange(len(run.eval_dataset))
        about = f"Images of {shorten(run.evaluated_on)}, spread evenly over it."
    else:
        made = "synthetic " if run.about.synthetic else ""
        about = f"There was no evaluation dataset: these are {made}images that were held out of the training."
    if not len(samples):
        return "", []
    task = run.task
    places = spread(samples, task.in_chans, task.image_size)
    pixels = read_pixels(data, places, task.image_size, run.crop_pct)
    classifier = Classifier(run.student, task.mean, task.std, names, run.device)
    training = run.student.training
    run.student.eval()
    try:
        evenly, mistaken = predict(classifier, pixels, data.labels[places].tolist())
    finally:
        run.student.train(training)
    if any(one.attention for one in evenly):
        about += " Beside each: where the student looked (attention rollout)."
    return about, [("Predictions", evenly), (f"Most confident mistakes among {len(places):,} images", mistaken)]


def _attention(run: FinishedRun) -> Markup:
    lines: dict[str, Points] = {
        name: list(enumerate(layers, 1)) for name, layers in recorded_distances(run.rows).items()
    }
    dots = [(layer, distance) for layer, heads in enumerate(run.heads, 1) for distance in heads]
    return line_chart("attention", "Mean attention distance by layer", lines, across="layer", up="pixels", dots=dots)


def _data_about(run: FinishedRun) -> str:
    if run.about.synthetic:
        return "Every one of these images was optimised from noise until the teacher recognised it."
    return ""


def _data(run: FinishedRun) -> list[tuple[str, str]]:
    quality = run.about.quality
    return [
        ("dataset", shorten(run.trained_on)),
        *((name, shorten(text, 200)) for name, text in run.about.data.items()),
        ("trained on", f"{len(run.trained):,} images of {len(np.unique(run.dataset.labels)):,} classes"),
        ("held out to choose the best epoch", f"{len(run.held_out):,} images"),
        *((meaning, number(quality[name])) for name, meaning in FIGURES.items() if quality.get(name) is not None),
    ]


def _teacher(run: FinishedRun) -> list[tuple[str, str]]:
    spec = run.teacher
    lines = [(name, shorten(text, 200)) for name, text in run.about.teacher.items()]
    if spec is None:
        return lines
    size = f"{spec.image_size}×{spec.image_size} pixels, {spec.in_chans} channel(s)"
    return [("name", shorten(spec.name)), ("architecture", shorten(spec.architecture)), ("input", size), *lines]


def _environment(run: FinishedRun) -> list[tuple[str, str]]:
    spec, last = run.spec, run.rows[-1]
    student = spec.student
    if run.device.type == "cuda":
        device = torch.cuda.get_device_name(run.device)
    else:
        device = f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm"))
    shape = f"{student.image_size}×{student.image_size}×{run.task.in_chans}"
    peak = last.get("peak_memory")
    return [
        ("architecture", f"{student.architecture}, input {shape}"),
        *((("run", run.about.run),) if run.about.run else ()),
        *((("model", run.about.model),) if run.about.model else ()),
        ("seed", str(spec.seed)),
        ("device", device),
        ("processes", f"{spec.processes}, {spec.precision}, batches of {spec.batch_size:,}"),
        *((("peak memory", f"{peak / 1e9:.2f} GB"),) if peak else ()),
        ("software", f"dearkd {dearkd.__version__}, {libraries}, Python {platform.python_version()}"),
        ("system", platform.platform(terse=True)),
    ]


def _use(run: FinishedRun) -> list[tuple[str, str]]:
    model = run.about.model
    where = model or "FOLDER"
    folder = "student" if model else "FOLDER"
    fetched = f"# first: dearkd model pull {model} student\n" if model else "# FOLDER: where the model's files lie\n"
    mode = "L" if run.task.in_chans == 1 else "RGB"
    python = f'''{fetched}import dearkd_trainer  # registers the architecture with timm
import timm
from PIL import Image

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
image = timm.data.create_transform(**data)(Image.open("image.png").convert("{mode}"))
print(model(image[None]).softmax(1).topk({min(5, run.task.num_classes)}))'''
    shell = f"""dearkd predict {where} image.png
dearkd evaluate {where} DATASET
dearkd export {where} NEW_FOLDER --to onnx   # or hf, pt2, safetensors"""
    return [("On the command line", shell), ("In Python", python)]


def _spec(run: FinishedRun) -> str:
    spec = run.published_spec
    text = printable_json(spec)
    if len(text) <= SPEC_CHARACTERS:
        return text
    cut = {name: value for name, value in spec.items() if len(json.dumps(value)) < 5_000}
    return "".join(islice(printable_json(cut), SPEC_CHARACTERS)) + "\n… long fields are left out"
