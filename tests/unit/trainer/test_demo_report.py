"""The demo's picture of real digits beside synthetic ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dearkd.vision.sample_grid import sample_grid
from dearkd_trainer.demo.report import side_by_side


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
