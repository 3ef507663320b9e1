"""The contents of pages in tests: a teacher, jobs in several states, datasets of real images, a run, a model."""

import io
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from dearkd.data.feature_maps import FEATURE_MAP, FeatureMap, MapPoint
from dearkd.data.manifests import DatasetManifest, count_classes, datasets
from dearkd.data.shard_files import Sample, Shard, write_shard
from dearkd.data.shard_info import info_json
from dearkd.identifiers import sibling
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import JobError, dataset_of, live_key
from dearkd.storage.catalog import Accuracy, StoredFile
from dearkd.vision.sample_grid import draw_grid, grid_file
from tests.support.api_contents import Json, Payload, claim, post_synthesis, put_model, put_teacher
from tests.support.services import Api

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass(frozen=True)
class Contents:
    """Ids of what there is."""

    teacher: str
    running: str
    made: str
    """A synthesis job that has succeeded."""
    dataset: str
    other: str
    """Another dataset."""
    run: str
    model: str
    failed: str


def digits(folder: Path, count: int, first: int = 0) -> list[Shard]:
    """Two shards of real digits, 32×32, in order of class."""
    data, labels = load_digits(return_X_y=True)
    picked = sorted(range(first, first + count), key=lambda i: int(labels[i]))
    shards = []
    for number, part in enumerate((picked[: count // 2], picked[count // 2 :])):
        samples = (
            Sample(f"{number * (count // 2) + i:09d}", _png(data[index]), "png", int(labels[index]), {})
            for i, index in enumerate(part)
        )
        shards.append(write_shard(folder / f"train-{number:06d}.tar", samples))
    return shards


def digit_png(index: int) -> bytes:
    """A real digit, 32×32."""
    return _png(load_digits(return_X_y=True)[0][index])


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    grey = Image.fromarray((pixels.reshape(8, 8) * 15.9).astype("uint8"))
    grey.resize((32, 32), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def preview(columns: int = 16, confidence: float | None = None, noise: float = 0.0) -> bytes:
    """A grid of digits, a row for each class; of images at work with the teacher's confidence and some noise."""
    data, labels = load_digits(return_X_y=True)
    picked = [i for label in range(10) for i in np.flatnonzero(labels == label)[:columns]]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(_png(data[i])))) for i in picked]).astype(float)
    mixed = (1 - noise) * pixels + noise * np.random.default_rng(0).integers(0, 255, pixels.shape)
    images = torch.from_numpy(mixed.astype("uint8"))[:, None]
    sure = None if confidence is None else torch.linspace(confidence, 0.99, len(picked))
    of = torch.from_numpy(labels[picked])
    return grid_file(
        draw_grid(images, of, rows=10, columns=columns, names=NAMES, smallest_cell=32, confidence=sure).convert("L")
    )


def pixel_map(first: int, count: int) -> FeatureMap:
    """The map of digits by their pixels, as if a teacher's features were these."""
    data, labels = load_digits(return_X_y=True)
    picked = sorted(range(first, first + count), key=lambda i: int(labels[i]))
    judge = PCA(2).fit(data[picked])
    places = judge.transform(data[picked])
    places /= np.abs(places).max()
    points = [
        MapPoint(
            key=f"{i:09d}",
            label=int(labels[index]),
            teacher_label=(int(labels[index]) + (i % 23 == 0)) % 10,
            margin=8.0 - i % 7,
            x=place[0],
            y=place[1],
        )
        for i, (index, place) in enumerate(zip(picked, places, strict=True))
    ]
    along = judge.explained_variance_ratio_
    return FeatureMap(explained_variance=(along[0], along[1]), points=points)


def quality(shards: list[Shard]) -> Json:
    """Figures such as a job leaves of its images."""
    classes = {
        str(label): {
            "samples": sum(shard.classes.get(label, 0) for shard in shards),
            "teacher_accuracy": 1 - label / 100,
            "confidence": 0.99 - label / 50,
            "margin": 9.5 - label / 3,
            "intra_class_diversity": 0.31 + label / 100,
            "batch_norm_distance": 1.5 + label / 10,
        }
        for label in range(10)
    }
    outliers = [
        {"key": f"{i * 7:09d}", "label": i // 3, "teacher_label": (i // 3 + 1) % 10, "margin": i / 10 - 1.0}
        for i in range(12)
    ]
    return {
        "samples": sum(shard.samples for shard in shards),
        "teacher_accuracy": 0.955,
        "confidence": 0.9,
        "margin": 8.0,
        "intra_class_diversity": 0.355,
        "batch_norm_distance": 1.2,
        "restarts": 0,
        "halved_batches": 0,
        "outliers": outliers,
        "classes": classes,
    }


def put_digits(api: Api, folder: Path, identifier: str, *, first: int = 0, **fields: Any) -> str:
    """A finished dataset of 400 real digits."""
    folder.mkdir(parents=True)
    shards = digits(folder, 400, first)
    catalog = datasets(api.storage)
    for shard in shards:
        api.storage.put(catalog.key(identifier, shard.name), folder / shard.name)
    api.storage.put(catalog.key(identifier, "_info.json"), info_json(shards))
    api.storage.put(catalog.key(identifier, "README.md"), b"# Digits\n")
    api.storage.put(catalog.key(identifier, FEATURE_MAP), pixel_map(first, 400).model_dump_json().encode())
    catalog.create(
        DatasetManifest(
            id=identifier,
            created_at=datetime.now(UTC),
            num_samples=400,
            num_classes=10,
            image_size=32,
            in_chans=1,
            classes=count_classes(shards, NAMES, 10),
            shards=shards,
            prefix=f"datasets/{identifier}",
            quality=quality(shards),
            **fields,
        )
    )
    return identifier


def fill(api: Api, folder: Path) -> Contents:
    """Make all of it, as clients and workers would."""
    ledger = Ledger(api.store)
    teacher = put_teacher(api, class_names=NAMES, name="digits cnn")
    common = {"teacher": teacher, "images_per_class": 40, "shard_samples": 200}

    failed = post_synthesis(api, **common, name="too few steps")
    error = JobError(code="poor_images", message="the teacher recognises 12 % of the first shard", retryable=False)
    ledger.fail(failed["id"], error)

    made = post_synthesis(api, **common, name="digits", labels={"team": "vision"})
    for shard in range(2):
        held = claim(api)
        _optimise(ledger, held, shard, 40)
        ledger.done(held, Payload(samples=200))
    dataset = dataset_of(made["id"])
    api.storage.put(f"datasets/{dataset}/preview.png", preview())
    put_digits(api, folder / "made", dataset, name="digits", teacher=teacher, spec=made["spec"], job=made["id"])
    ledger.complete(claim(api), {"dataset": dataset})
    other = put_digits(api, folder / "other", sibling(failed["id"], "ds"), first=900, name="real digits")

    run = api.http.post(
        "/v1/training-runs", json={"dataset": dataset, "name": "vit on digits", "recipe": "small"}
    ).json()
    trained = claim(api, "training")
    ledger.set_rows(run["id"], [_row(epoch) for epoch in range(1, 41)])
    ledger.report(trained, done=300, per_second=0.4, metrics=_row(40))
    model = _evaluated(api, sibling(run["id"], "mdl"), dataset, run=run["id"])
    ledger.complete(trained, {"model": model})

    running = post_synthesis(api, **common, name="more digits", labels={"team": "vision", "round": "3"})
    held = claim(api)
    _optimise(ledger, held, 0, 60)
    api.storage.put(f"datasets/{dataset_of(running['id'])}/preview.png", preview())
    api.storage.put(live_key(running["id"]), preview(8, confidence=0.4, noise=0.45))
    ledger.log.add(
        running["id"], "shard 0: batch 1 diverged and starts again at a learning rate of 0.05 (restart 1 of 3)"
    )
    return Contents(teacher, running["id"], made["id"], dataset, other, run["id"], model, failed["id"])


def _evaluated(api: Api, identifier: str, dataset: str, **of: Any) -> str:
    confusion = [[0.9 if i == j else 0.1 if j == (i + 1) % 10 else 0.0 for j in range(10)] for i in range(10)]
    report = {
        "samples": 360,
        "top1": 0.9,
        "loss": 0.31,
        "expected_calibration_error": 0.034,
        "per_class": [{"index": i, "name": NAMES[i], "samples": 36, "accuracy": 0.9} for i in range(10)],
        "confusion": confusion,
    }
    page = (
        "<!doctype html><html lang='en'><title>r</title><style>h1 { color: rgb(1, 2, 3) }</style><h1>Report</h1></html>"
    )
    files = []
    for name, text in (("evaluation.json", json.dumps(report)), ("report.html", page)):
        api.storage.put(f"models/{identifier}/{name}", text.encode())
        files.append(StoredFile(name=name, bytes=len(text.encode()), sha256=sha256(text.encode()).hexdigest()))
    accuracy = Accuracy(top1=0.9, top5=0.99, dataset=dataset)
    return put_model(
        api,
        id=identifier,
        class_names=NAMES,
        files=files,
        accuracy=accuracy,
        name="vit on digits",
        dataset=dataset,
        **of,
    )


def _optimise(ledger: Ledger, held: Any, shard: int, reports: int) -> None:
    for i in range(reports):
        t = 10 * (i % 20) + 1
        metrics = {
            "shard": shard,
            "batch": i // 20,
            "iteration": t,
            "cross_entropy": 2.3 * math.exp(-t / 40) + 0.01,
            "batch_norm": 12 * math.exp(-t / 80) + 1,
            "total_variation_l2": 0.001 * (1 + t / 100),
            "boundary": 0.4 * math.exp(-t / 60) + 0.02,
            "total": 14 * math.exp(-t / 70) + 1.1,
        }
        ledger.report(held, done=3 * i, per_second=2.4, metrics=metrics)


def _row(epoch: int) -> Json:
    second = epoch > 30
    return {
        "epoch": epoch,
        "stage": 2 if second else 1,
        "loss": 2.3 * math.exp(-epoch / 12) + 0.1,
        "classification": 2.0 * math.exp(-epoch / 10) + 0.05,
        "learning_rate": 1e-3 * (1 - epoch / 41),
        "images_per_second": 900.0 + 10 * (epoch % 5),
        "holdout_top1": 1 - 0.9 * math.exp(-epoch / 9),
    } | (
        {f"attention_distance_{layer}": 5.0 + layer + epoch / 40 for layer in range(1, 7)} if epoch in (30, 40) else {}
    )
