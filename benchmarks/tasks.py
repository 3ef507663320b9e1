"""Tasks with real sources that neither teacher nor synthesis sees: digits, clothes, photographs by parts, glyphs."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import skimage
import sklearn.datasets
import torch
from PIL import Image, ImageDraw, ImageFont
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
    mirrored: bool = False
    """True if a mirrored image is one of the same class."""

    @property
    def in_chans(self) -> int:
        return self.images.shape[1]


FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts it (MIT)."""
FONTS = [
    *(f"DejaVuSans{cut}" for cut in ("", "-Bold", "-Oblique", "Mono", "Mono-Bold", "Mono-Oblique")),
    *(f"DejaVuSerif{cut}" for cut in ("", "-Bold", "-Italic", "-BoldItalic")),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
]
"""Fonts that come with matplotlib, in which each letter has its usual place; every third one is held out."""

TASKS = ("digits", "fashion", "photographs", "glyphs")


def task(name: str) -> Task:
    """One of `TASKS`."""
    return {"digits": digits, "fashion": fashion, "photographs": photographs, "glyphs": glyphs}[name]()


def digits() -> Task:
    """scikit-learn's handwritten digits in the demo's split."""
    train, held_out = real_digits()
    return Task("digits", [str(d) for d in range(10)], train.images, train.labels, held_out.images, held_out.labels)


def fashion(*, validation: int = 10_000) -> Task:
    """Fashion-MNIST, padded to 32×32; of its training images the last are held out, and its test images are not read.

    Raises:
        FileNotFoundError: if the package dataset-fashion-mnist is not installed.
    """
    images, labels = _fashion("train")
    names = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
    cut = len(labels) - validation
    return Task("fashion", names, images[:cut], labels[:cut], images[cut:], labels[cut:], mirrored=True)


def fashion_test() -> tuple[Tensor, Tensor]:
    """Its 10,000 test images and labels, which choose nothing: to be looked at once, when all is chosen."""
    return _fashion("t10k")


def _fashion(part: str) -> tuple[Tensor, Tensor]:
    files = (
        (FASHION / f"{part}-images-idx3-ubyte.gz", 16, (-1, 1, 28, 28)),
        (FASHION / f"{part}-labels-idx1-ubyte.gz", 8, (-1,)),
    )
    images, labels = (
        torch.from_numpy(
            np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).reshape(shape).copy()
        )
        for path, header, shape in files
    )
    return torch.nn.functional.pad(images, (2, 2, 2, 2)), labels.long()


def glyphs(*, per_class: int = 200, seed: int = 0) -> Task:
    """Capital letters in many fonts, sizes, turns and colours, on grounds of others; whole fonts are held out."""
    generator = np.random.default_rng(seed)
    names = [chr(ord("A") + n) for n in range(26)]
    parts: list[tuple[Tensor, Tensor]] = []
    for fonts in ([f for n, f in enumerate(FONTS) if n % 3 != 2], FONTS[2::3]):
        count = per_class if not parts else per_class // 4
        made = [glyph(letter, fonts[n % len(fonts)], generator) for letter in names for n in range(count)]
        parts.append((torch.stack(made), torch.arange(26).repeat_interleave(count)))
    (images, labels), (held_out, held_out_labels) = parts
    return Task("glyphs", names, images, labels, held_out, held_out_labels, {"flip": 0.0})


def glyph(letter: str, font: str, generator: np.random.Generator) -> Tensor:
    """(3, 32, 32), uint8: one letter, drawn at four times the size."""
    ground = generator.integers(0, 256, 3)
    ink = ground
    while np.abs(ink - ground).sum() < 200:
        ink = generator.integers(0, 256, 3)
    image = Image.new("RGB", (4 * SIDE, 4 * SIDE), tuple(ground.tolist()))
    face = ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf", int(generator.integers(70, 115))
    )
    middle = 2 * SIDE + generator.integers(-10, 11, 2)
    ImageDraw.Draw(image).text(tuple(middle.tolist()), letter, tuple(ink.tolist()), face, anchor="mm")
    image = image.rotate(generator.uniform(-15, 15), Image.Resampling.BICUBIC, fillcolor=tuple(ground.tolist()))
    return torch.from_numpy(np.array(image.resize((SIDE, SIDE), Image.Resampling.BOX))).permute(2, 0, 1)


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
