"""The files that a finished run leaves beside its model: evaluation, pictures, model card and report."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dearkd.names import markdown_code
from dearkd.vision.sample_grid import draw_grid
from dearkd_trainer.evaluate.attention import recorded_distances
from dearkd_trainer.evaluate.report import ATTENTION, report_of, write_evaluation
from dearkd_trainer.model.export import CARD, REPORT, SAMPLES
from dearkd_trainer.record.card import run_card
from dearkd_trainer.record.checkpoint import write_atomically
from dearkd_trainer.report.finished_run import FinishedRun
from dearkd_trainer.report.predictions import read_pixels

log = logging.getLogger(__name__)

ROWS, COLUMNS = 10, 8
"""Classes, and images of each, in the picture of the training images."""


def write_run_report(folder: Path, run: FinishedRun) -> None:
    """Write `evaluation.json`, `attention_distance.png`, the model card with `samples.png`, and `report.html`.

    Without an evaluation there is no `evaluation.json`, and without attention no picture of it. What people look at is
    dispensable: where a picture or the report fails, a warning is logged and the rest is written. `samples.png` is of
    synthetic images alone: a card is published, and real images may be nobody else's business.

    Args:
        folder: where the model lies.
        run: at its end.
    """
    found = None
    if run.evaluation is not None and run.eval_dataset is not None:
        samples = np.bincount(run.eval_dataset.labels, minlength=run.task.num_classes).tolist()
        found = report_of(run.evaluation, run.heads, run.names, samples) | {"dataset": run.evaluated_on}
        write_evaluation(folder, found)
    if run.heads:
        with _dispensable(folder / ATTENTION):
            from dearkd_trainer.evaluate.pictures import attention_distance_picture  # matplotlib, which no step needs

            (folder / ATTENTION).write_bytes(attention_distance_picture(recorded_distances(run.rows), run.heads))
    grid, has_samples = None, False
    with _dispensable(folder / SAMPLES):
        grid = training_grid(run)
        if run.about.synthetic:
            grid.save(folder / SAMPLES, "PNG")
            has_samples = True
    (folder / CARD).write_text(_card(run, with_samples=has_samples), encoding="utf-8")
    with _dispensable(folder / REPORT):
        from dearkd_trainer.report.contents import run_page  # matplotlib again, and Jinja2

        page = run_page(run, found, grid)
        write_atomically(folder / REPORT, lambda part: part.write_text(page, encoding="utf-8", errors="replace"))


@contextmanager
def _dispensable(path: Path) -> Iterator[None]:
    """Log what fails inside, and go on without the file."""
    try:
        yield
    except Exception as error:  # whatever it is, the model is worth more
        path.unlink(missing_ok=True)
        log.warning("%s was not written; the model is whole without it: %r", path.name, error, exc_info=True)


def training_grid(run: FinishedRun) -> Image.Image:
    """A picture of the training images, a row for each of up to `ROWS` classes that are spread over all."""
    labels = run.dataset.labels[run.trained]
    present = np.unique(labels)
    shown = present[np.unique(np.linspace(0, len(present) - 1, min(ROWS, len(present))).round().astype(int))]
    places = np.sort(np.concatenate([run.trained[labels == label][:COLUMNS] for label in shown]))
    pixels = read_pixels(run.dataset, places, run.task.image_size, 1.0)
    names = run.names if run.task.class_names is not None else None
    return draw_grid(pixels, torch.from_numpy(run.dataset.labels[places]), rows=ROWS, columns=COLUMNS, names=names)


def _card(run: FinishedRun, *, with_samples: bool) -> str:
    found, spec, about = run.evaluation, run.spec, run.about
    images, source = f"{len(run.trained):,}", markdown_code(run.trained_on)
    return run_card(
        run.name,
        run.published_spec,
        kind=run.student.kind,
        architecture=spec.student.architecture,
        image_size=spec.student.image_size,
        in_chans=run.task.in_chans,
        num_classes=run.task.num_classes,
        data=f"{images} synthetic images ({source}), made from the teacher alone"
        if about.synthetic
        else f"{images} images of {source}",
        teacher=about.teacher.get("id") or (run.teacher.name if run.teacher else spec.teacher),
        accuracy={"top-1": found.top1, "top-5": found.top5} if found is not None else {},
        evaluated_on=run.evaluated_on if found is not None else None,
        metrics=run.rows[-1],
        run=about.run,
        samples=SAMPLES if with_samples else None,
    )
