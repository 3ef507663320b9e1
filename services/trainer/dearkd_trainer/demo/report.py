"""`report.html` of the demo: the page that its run has left, with what the demo knows besides."""

from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image

from dearkd.client import Client
from dearkd_trainer.demo.digits import real_digits
from dearkd_trainer.model.export import REPORT
from dearkd_trainer.report.charts import line_chart
from dearkd_trainer.report.page import Section, with_sections
from dearkd_trainer.report.pictures import embedded

NO_TERMS = {"shard", "batch", "iteration", "phase"}
"""Fields of a synthesis job's events that are no terms of its loss."""


def write_report(client: Client, folder: Path, report: dict[str, Any]) -> None:
    """Write `report.html` and `digits.png` (real and synthetic digits side by side) beside `report.json`.

    Raises:
        NotFound: if the run has left no report; `digits.png` is there then.
    """
    beside = side_by_side(folder / "preview.png")
    beside.save(folder / "digits.png")
    path = folder / REPORT
    client.download_model_file(report["model"], REPORT, path)
    losses = [event.data for event in client.list_events(report["synthesis_job"]) if event.type == "metrics"]
    page = with_sections(path.read_text(encoding="utf-8"), sections(report, beside, losses))
    path.write_text(page, encoding="utf-8")


def sections(report: dict[str, Any], beside: Image.Image, losses: list[dict[str, Any]]) -> list[Section]:
    """The parts of the demo's page that other runs' pages lack.

    Args:
        report: the content of `report.json`.
        beside: real and synthetic digits side by side.
        losses: the terms of the synthesis' loss, over time.
    """
    return [
        Section(
            "A vision transformer from a CNN alone",
            "The teacher's training images were not used after the teacher was trained. The student saw only images "
            "that were optimised from noise, and is judged on 540 real digits that nothing before had touched.",
            table=_table(report),
        ),
        Section(
            "Real digits, and what was synthesised",
            "Left: real training digits, which the synthesis never saw. Right: synthetic ones.",
            pictures=[(embedded(beside), "Real digits beside synthetic ones")],
            charts=[("Synthesis: terms of the loss over time", synthesis_chart(losses))],
        ),
    ]


def synthesis_chart(losses: list[dict[str, Any]]) -> Markup:
    """The terms of a synthesis' loss that were ever above 0, over the reports of them; empty without any."""
    names = sorted({name for row in losses for name in row} - NO_TERMS)
    lines = {
        name.replace("_", " "): [(number, row[name]) for number, row in enumerate(losses, 1) if row.get(name, 0) > 0]
        for name in names
    }
    return line_chart("synthesis", "Terms of the synthesis' loss over time", lines, across="report", logarithmic=True)


def side_by_side(preview: Path, *, columns: int = 8) -> Image.Image:
    """Real digits on the left, the grid of synthetic ones on the right, both with a row for each class."""
    train, _ = real_digits()
    with Image.open(preview) as grid:
        synthetic = grid.convert("RGB")
    side = synthetic.height // 10
    real = Image.new("RGB", (side * columns, side * 10), "white")
    for digit in range(10):
        for column, index in enumerate(torch.nonzero(train.labels == digit)[:columns, 0].tolist()):
            tile = Image.fromarray(train.images[index, 0].numpy()).resize(
                (side - 2, side - 2), Image.Resampling.NEAREST
            )
            real.paste(tile.convert("RGB"), (column * side + 1, digit * side + 1))
    names = (synthetic.width - 2) % side  # of the classes, before their rows
    cells = synthetic.crop((names, 0, min(synthetic.width, names + side * columns + 2), synthetic.height))
    picture = Image.new("RGB", (real.width + 24 + cells.width, cells.height), "white")
    picture.paste(real, (0, 0))
    picture.paste(cells, (real.width + 24, 0))
    return picture


def _table(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Teacher (CNN), held-out real digits", f"{report['teacher_top1']:.2%}"),
        ("Student (ViT), trained without one real image", f"{report['student_top1']:.2%}"),
        *(
            (f"Compared: {name}", f"{value['student_top1']:.2%}")
            for name, value in report.get("comparison", {}).items()
        ),
        ("Synthetic images", str(report["num_images"])),
        ("… that the teacher gives their label", f"{report['images_teacher_accuracy']:.2%}"),
        ("… intra-class diversity (mean cosine distance)", f"{report['images_intra_class_diversity']:.3f}"),
        *((f"Time: {name}", f"{seconds:.0f} s") for name, seconds in report["seconds"].items()),
    ]
