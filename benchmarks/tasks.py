"""Tasks with real sources that neither teacher nor synthesis sees: digits, and photographs by their parts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import skimage
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor

from dearkd_trainer.demo.digits import real_digits

SIDE = 32
GRID = 4
HELD_OUT = ((0, 2), (1, 0), (2, 3), (3, 1))
"""Rows and columns of a photograph's cells that training never sees."""

_BUNDLED = Path(skimage.__file__).parent / "data"
_SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
_MATPLOTLIB = Path(matplotlib.get_data_path()) / "sample_data"
PHOTOGRAPHS = {
    "astronaut": _BUNDLED / "astronaut.png",
    "cat": _BUNDLED / "chelsea.png",
    "coffee": _BUNDLED / "coffee.png",
    "galaxies": _BUNDLED / "hubble_deep_field.jpg",
    "tissue": _BUNDLED / "ihc.png",
    "motorcycle": _BUNDLED / "motorcycle_left.png",
    "retina": _BUNDLED / "retina.jpg",
    "rocket": _BUNDLED / "rocket.jpg",
    "temple": _SKLEARN / "china.jpg",
    "flower": _SKLEARN / "flower.jpg",
    "admiral": _MATPLOTLIB / "grace_hopper.jpg",
    "brick": _BUNDLED / "brick.png",
    "cameraman": _BUNDLED / "camera.png",
    "cell": _BUNDLED / "cell.png",
    "clock": _BUNDLED / "clock_motion.png",
    "coins": _BUNDLED / "coins.png",
    "grass": _BUNDLED / "grass.png",
    "gravel": _BUNDLED / "gravel.png",
    "moon": _BUNDLED / "moon.png",
    "page": _BUNDLED / "page.png",
    "text": _BUNDLED / "text.png",
}
"""All that the packages scikit-image, scikit-learn and matplotlib bring with them; the last ten are grey."""


@dataclass(frozen=True)
class Task:
    """Images (N, C, 32, 32), uint8, and labels (N,), to train CNNs on and to judge by."""

    name: str
    class_names: list[str]
    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    synthesis: dict[str, Any] = field(default_factory=dict)
    """Fields of the synthesis spec that go with it."""

    @property
    def in_chans(self) -> int:
        return self.images.shape[1]


TASKS = ("digits", "photographs")


def task(name: str) -> Task:
    """One of `TASKS`."""
    return {"digits": digits, "photographs": photographs}[name]()


def digits() -> Task:
    """scikit-learn's handwritten digits in the demo's split."""
    train, held_out = real_digits()
    return Task("digits", [str(d) for d in range(10)], train.images, train.labels, held_out.images, held_out.labels)


def photographs(*, train_per_class: int = 120, held_out_per_class: int = 25, seed: int = 0) -> Task:
    """21 photographs, each a class: which one is this crop from?

    A photograph is cut into 4×4 cells. Crops are squares of 0.55 to 1 of a cell's shorter side, at random places within
    it, scaled to 32×32. Four cells, one in each row and column, are held out: no pixel of theirs is in training.
    """
    generator = np.random.default_rng(seed)
    cells = [(row, column) for row in range(GRID) for column in range(GRID)]
    seen = [cell for cell in cells if cell not in HELD_OUT]
    train = [crops(path, seen, train_per_class, generator) for path in PHOTOGRAPHS.values()]
    held = [crops(path, HELD_OUT, held_out_per_class, generator) for path in PHOTOGRAPHS.values()]
    labels = torch.arange(len(PHOTOGRAPHS))
    return Task(
        "photographs",
        list(PHOTOGRAPHS),
        torch.cat(train),
        labels.repeat_interleave(train_per_class),
        torch.cat(held),
        labels.repeat_interleave(held_out_per_class),
        {"flip": 0.0},  # a page in a mirror is none
    )


def crops(path: Path, cells: Sequence[tuple[int, int]], count: int, generator: np.random.Generator) -> Tensor:
    """(count, 3, 32, 32), uint8: of the cells (row, column) in turn, and of nothing else."""
    with Image.open(path) as file:
        photograph = file.convert("RGB")
    width, height = photograph.width // GRID, photograph.height // GRID
    made = []
    for number in range(count):
        row, column = cells[number % len(cells)]
        # Cut first: resampling looks at the pixels around the box that it is given.
        cell = photograph.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        side = generator.uniform(0.55, 1.0) * min(width, height)
        left, top = generator.uniform(0, width - side), generator.uniform(0, height - side)
        crop = cell.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        made.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    return torch.stack(made)
