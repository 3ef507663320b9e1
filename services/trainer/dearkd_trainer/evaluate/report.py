"""The report of a run, as files beside its model: rows of metrics, evaluation, attention distances, model card."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dearkd.specs import TrainingSpec
from dearkd_trainer.evaluate.attention import recorded_distances
from dearkd_trainer.evaluate.evaluation import Evaluation
from dearkd_trainer.model.attention import layer_means
from dearkd_trainer.model.export import CARD
from dearkd_trainer.record.card import run_card
from dearkd_trainer.record.checkpoint import write_atomically
from dearkd_trainer.record.meter import json_row

METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
ATTENTION = "attention_distance.png"


def write_rows(folder: Path, rows: Sequence[Mapping[str, int | float]]) -> None:
    """Write `metrics.jsonl` with these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / METRICS, lambda part: part.write_bytes(json_lines(rows)))


def json_lines(rows: Sequence[Mapping[str, int | float]]) -> bytes:
    """Rows of metrics as JSON, a line each."""
    return "".join(json.dumps(json_row(row)) + "\n" for row in rows).encode()


def report_of(
    found: Evaluation, heads: Sequence[Sequence[float]], class_names: Sequence[str], samples: Sequence[int]
) -> dict[str, Any]:
    """An evaluation as JSON, null for what is no finite number.

    Args:
        found: the evaluation.
        heads: mean attention distance of each head of each layer, in pixels.
        class_names, samples: name of each class, and how many images of it were looked at.
    """
    report = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(found).items()
    }
    report["per_class"] = [
        {"index": index, "name": name, "samples": count, "accuracy": accuracy}
        for index, (name, count, accuracy) in enumerate(zip(class_names, samples, found.per_class, strict=True))
    ]
    report["attention_distance"] = {
        "unit": "pixels",
        "layers": layer_means(heads),
        "heads": [list(layer) for layer in heads],
    }
    return report


def write_evaluation(folder: Path, report: Mapping[str, Any]) -> None:
    """Write what `report_of` gave, and what was added to it, as `evaluation.json`."""
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / EVALUATION, lambda part: part.write_text(text, encoding="utf-8"))


def write_run_report(
    folder: Path,
    spec: TrainingSpec,
    config: Mapping[str, Any],
    kind: str,
    rows: Sequence[Mapping[str, int | float]],
    heads: Sequence[Sequence[float]],
    *,
    images: int,
    teacher: str | None,
    evaluation: Evaluation | None,
    samples: Sequence[int] | None,
) -> None:
    """Write `evaluation.json`, `attention_distance.png` (after stage one and after stage two) and the model card.

    Args:
        folder: where the model lies.
        spec: of the run.
        config: the model's `config.json`.
        kind: the student's sort of network, as the card names it.
        rows: of every epoch.
        heads: mean attention distance of each head of each layer, in pixels, of the final weights; without any there
            is no picture.
        images: that were trained on.
        teacher: its name.
        evaluation: of the final weights on images of their own; without one there is no `evaluation.json`.
        samples: images of each class that it looked at.
    """
    from dearkd_trainer.evaluate.pictures import attention_distance_picture  # matplotlib, which no step needs

    name, on = spec.name or "DearKD student", spec.eval_dataset or "the evaluation dataset"
    names = config.get("label_names") or [str(index) for index in range(config["num_classes"])]
    accuracy: dict[str, float] = {}
    if evaluation is not None and samples is not None:
        report = report_of(evaluation, heads, names, samples)
        write_evaluation(folder, report | {"dataset": on})
        accuracy = {"top-1": evaluation.top1, "top-5": evaluation.top5}
    if heads:
        (folder / ATTENTION).write_bytes(attention_distance_picture(recorded_distances(rows), heads))
    card = run_card(
        name,
        spec.model_dump(mode="json"),
        kind=kind,
        architecture=spec.student.architecture,
        image_size=spec.student.image_size,
        in_chans=config["pretrained_cfg"]["input_size"][0],
        num_classes=config["num_classes"],
        data=f"{images} images of `{spec.dataset}`",
        teacher=teacher,
        accuracy=accuracy,
        evaluated_on=on if accuracy else None,
        metrics=rows[-1],
    )
    (folder / CARD).write_text(card, encoding="utf-8")
