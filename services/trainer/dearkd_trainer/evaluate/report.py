"""The measurements of a run as files beside its model: rows of metrics, and an evaluation as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dearkd_trainer.evaluate.evaluation import Evaluation
from dearkd_trainer.model.attention import layer_means
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
