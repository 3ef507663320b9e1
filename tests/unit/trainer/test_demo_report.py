"""What the demo adds to the page of its run: its table, and real digits beside synthetic ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dearkd.vision.sample_grid import sample_grid
from dearkd_trainer.demo.report import sections, side_by_side
from dearkd_trainer.report.page import MORE, with_sections
from tests.support.report_pages import read_page, require_alone


@pytest.mark.parametrize("names", [None, [f"class {label}" for label in range(10)]])
def test_the_synthetic_half_shows_whole_columns_whatever_stands_before_the_rows(
    names: list[str] | None, tmp_path: Path
) -> None:
    labels = torch.arange(10).repeat_interleave(12)
    images = torch.randint(0, 256, (120, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    preview, eight = tmp_path / "preview.png", tmp_path / "eight.png"
    preview.write_bytes(sample_grid(images, labels, names=names))
    eight.write_bytes(sample_grid(images, labels, columns=8))
    with Image.open(eight) as grid:
        expected = np.array(grid)

    shown = np.array(side_by_side(preview))

    # The first column's rim is what ends the margin where there are names.
    assert np.array_equal(shown[:, -expected.shape[1] + 2 :], expected[:, 2:])


def test_it_adds_its_table_and_the_terms_of_the_synthesis_to_the_page_of_the_run() -> None:
    report = {
        "teacher_top1": 0.98,
        "student_top1": 0.91,
        "num_images": 2000,
        "images_teacher_accuracy": 0.999,
        "images_intra_class_diversity": 0.25,
        "comparison": {"no <MHCA>": {"student_top1": 0.5}},
        "seconds": {"training": 61.2},
    }
    terms = {"shard": 0, "batch_norm": 3.0, "boundary": 0.0}
    losses = [terms | {"iteration": n, "cross_entropy": 2.0 / n} for n in range(1, 30)]
    beside = Image.new("RGB", (64, 32), "red")
    html = with_sections(f"<main>{MORE}<h2>Curves</h2></main>", sections(report, beside, losses))
    page = read_page(html)
    require_alone(page)
    assert "Student (ViT), trained without one real image\n91.00%\n" in page.text
    assert "Compared: no <MHCA>\n50.00%\n" in page.text
    assert page.text.endswith("Curves\n")
    assert [svg["aria-label"] for svg in page.named("svg")] == ["Terms of the synthesis' loss over time"]
    assert [name in page.text for name in ("cross entropy", "batch norm", "boundary", "shard")] == [1, 1, 0, 0]
    assert [image["alt"] for image in page.named("img")] == ["Real digits beside synthetic ones"]
