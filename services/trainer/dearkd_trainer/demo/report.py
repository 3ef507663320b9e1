"""`report.html`: one page without any other file: the table, the images beside real ones, the curves."""

import base64
import html
import io
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from PIL import Image

from dearkd.client import Client
from dearkd_trainer.demo.digits import real_digits

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dearkd demo</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .25rem .9rem .25rem 0; text-align: left; }}
td:nth-child(n+2) {{ font-variant-numeric: tabular-nums; }}
img {{ max-width: 100%; image-rendering: pixelated; }}
.curves img {{ image-rendering: auto; background: white; border-radius: .4rem; }}
</style></head><body>
<h1>A vision transformer from a CNN alone</h1>
<p>The teacher's training images were not used after the teacher was trained. The student saw only the images below,
which were optimised from noise, and is judged on 540 real digits that nothing before had touched.</p>
{table}
<h2>Real digits, and what was synthesised</h2>
<p>Left: real training digits, which the synthesis never saw. Right: synthetic ones.</p>
<img src="{beside}" alt="real digits beside synthetic ones">
<h2>All classes</h2>
<img src="{preview}" alt="a grid of synthetic digits">
<h2>Curves</h2>
<p class="curves"><img src="{curves}" alt="losses and accuracy over the epochs"></p>
</body></html>
"""


def write_report(client: Client, folder: Path, report: dict[str, Any]) -> None:
    """Write `report.html` and `digits.png` (real and synthetic digits side by side) beside `report.json`."""
    beside = folder / "digits.png"
    side_by_side(folder / "preview.png").save(beside)
    rows = [row.model_dump(exclude_unset=True) for row in client.list_metrics(report["training_run"])]
    losses = [event.data for event in client.list_events(report["synthesis_job"]) if event.type == "metrics"]
    page = PAGE.format(
        table=_table(report),
        beside=_embedded(beside.read_bytes()),
        preview=_embedded((folder / "preview.png").read_bytes()),
        curves=_embedded(plot(rows, losses)),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


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


def plot(rows: list[dict[str, Any]], losses: list[dict[str, Any]]) -> bytes:
    """Three panels as PNG: the synthesis' terms, the training's losses, the accuracies."""
    matplotlib.use("Agg")
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    synthesis, training, accuracy = figure.subplots(1, 3)
    for name in sorted({name for row in losses for name in row} - {"shard", "batch", "iteration", "phase"}):
        values = [row[name] for row in losses if name in row]
        if any(value > 0 for value in values):
            synthesis.plot(values, label=name, linewidth=1)
    synthesis.set(title="synthesis: terms over time", yscale="log")
    epochs = [row["epoch"] for row in rows]
    for name in ("loss", "classification", "distillation", "hidden"):
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        if points:
            training.plot(*zip(*points, strict=True), label=name)
    training.set(title="training: losses", xlabel="epoch")
    for name in ("holdout_top1", "eval_top1"):
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        if points:
            accuracy.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    accuracy.set(title="accuracy: held-out synthetic, real", xlabel="epoch")
    switch = next((row["epoch"] for row in rows if row["stage"] == 2), None)
    for axes in (synthesis, training, accuracy):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        if switch is not None and axes is not synthesis and epochs:
            axes.axvline(switch - 0.5, color="grey", linestyle=":", linewidth=1)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def _table(report: dict[str, Any]) -> str:
    rows = [
        ("Teacher (CNN), held-out real digits", f"{report['teacher_top1']:.2%}"),
        ("<b>Student (ViT), trained without one real image</b>", f"<b>{report['student_top1']:.2%}</b>"),
        *(
            (f"Compared: {html.escape(name)}", f"{value['student_top1']:.2%}")
            for name, value in report.get("comparison", {}).items()
        ),
        ("Synthetic images", str(report["num_images"])),
        ("… that the teacher gives their label", f"{report['images_teacher_accuracy']:.2%}"),
        ("… intra-class diversity (mean cosine distance)", f"{report['images_intra_class_diversity']:.3f}"),
        *((f"Time: {html.escape(name)}", f"{seconds:.0f} s") for name, seconds in report["seconds"].items()),
    ]
    return "<table>" + "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows) + "</table>"


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
