"""A picture of images by class, for people. Drawn by Pillow alone."""

import io
import json
from collections.abc import Sequence

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dearkd.data.grid_layouts import LAYOUT

SMALLEST_CELL, LARGEST_CELL = 64, 112
"""The sides in pixels to which a grid enlarges smaller images, and shrinks larger ones."""


def sample_grid(
    images: Tensor, labels: Tensor, *, rows: int = 10, columns: int = 16, names: Sequence[str] | None = None
) -> bytes:
    """A PNG for people: a row for each of the first classes, with their first images as columns; see `draw_grid`."""
    return grid_file(draw_grid(images, labels, rows=rows, columns=columns, names=names))


def grid_file(grid: Image.Image, *, compress_level: int = 6) -> bytes:
    """A PNG of what `draw_grid` drew, with its layout as a text that readers of pictures pass over."""
    said = PngInfo()
    said.add_text(LAYOUT, grid.info[LAYOUT])
    file = io.BytesIO()
    grid.save(file, "PNG", pnginfo=said, compress_level=compress_level)
    return file.getvalue()


def draw_grid(
    images: Tensor,
    labels: Tensor,
    *,
    rows: int,
    columns: int,
    names: Sequence[str] | None = None,
    smallest_cell: int = SMALLEST_CELL,
    confidence: Tensor | None = None,
) -> Image.Image:
    """A picture for people: a row for each of the first classes, with their first images as columns.

    Its `info[LAYOUT]` says what is where (`dearkd.data.grid_layouts`).

    Args:
        images: (N, C, H, W), uint8.
        labels: (N,).
        rows: the most classes shown.
        columns: the most images shown of each.
        names: by class index, written before each row; None for rows without names.
        smallest_cell: the side in pixels to which smaller images are enlarged, by a whole number.
        confidence: (N,), the teacher's of each image's label, where it is known.
    """
    gap = 2
    classes: list[int] = labels.unique()[:rows].tolist()
    shown = [_printable(names[label]) for label in classes] if names else []
    places: list[list[int]] = [(labels == label).nonzero()[:columns, 0].tolist() for label in classes]
    # Views: a second thread draws too, and shall start no threads of torch's.
    picked = [[images[place] for place in row] for row in places]
    side = images.shape[-1]
    cell = side * max(1, smallest_cell // side) if side <= LARGEST_CELL else LARGEST_CELL
    columns = max(len(row) for row in picked)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = max((round(pen.textlength(name)) + 6 for name in shown), default=0)
    size = (margin + columns * (cell + gap) + gap, len(picked) * (cell + gap) + gap)
    grid = Image.new("RGB", size, (128, 128, 128))
    pen = ImageDraw.Draw(grid)
    for r, name in enumerate(shown):
        pen.text((3, gap + r * (cell + gap) + cell // 2 - 6), name, fill="white")
    for r, row in enumerate(picked):
        for c, image in enumerate(row):
            pixels = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
            how = Image.Resampling.NEAREST if cell >= side else Image.Resampling.LANCZOS
            place = (margin + gap + c * (cell + gap), gap + r * (cell + gap))
            grid.paste(pixels.resize((cell, cell), how), place)
    said = [
        {
            "name": names[label] if names else None,
            "confidence": [] if confidence is None else [round(confidence[place].item(), 4) for place in row],
        }
        for label, row in zip(classes, places, strict=True)
    ]
    grid.info[LAYOUT] = json.dumps({"cell": cell, "gap": gap, "margin": margin, "rows": said})
    return grid


def _printable(name: str) -> str:
    """A name in Latin-1, which Pillow's own font can write with or without FreeType, cut to 24 characters."""
    plain = name.encode("latin-1", "replace").decode("latin-1").replace("\n", " ")
    return plain if len(plain) <= 24 else plain[:23] + "."
