"""A picture of images with what they are and what a network says that they are. Drawn by Pillow alone."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLUMNS = 6
TILE = 144
"""Side of a tile's image, in pixels."""
LINE, GAP = 18, 10
RIGHT, WRONG, BLACK = (0, 110, 40), (190, 20, 20), (0, 0, 0)


def write_answer_grid(path: Path, pixels: Tensor, lines: Sequence[tuple[str, str, bool]]) -> None:
    """Write a PNG of images in a grid, each over two lines of text.

    Args:
        path: of the file.
        pixels: (N, C, H, W), uint8, C of 1 or 3, N at least 1.
        lines: for each image, what it is, what it is said to be, and True if that is right: green, else red.
    """
    columns = min(COLUMNS, len(pixels))
    width, height = TILE + GAP, TILE + 2 * LINE + GAP
    grid = Image.new("RGB", (columns * width + GAP, math.ceil(len(pixels) / columns) * height + GAP), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(13)
    for number, (image, (truth, answer, right)) in enumerate(zip(pixels, lines, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP + column * width, GAP + row * height
        array = image.permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
        # Small images keep their pixels to be seen.
        resample = Image.Resampling.NEAREST if picture.width < TILE else Image.Resampling.LANCZOS
        grid.paste(picture.resize((TILE, TILE), resample), (left, top))
        draw.text((left, top + TILE), _cut(truth, font), fill=BLACK, font=font)
        draw.text((left, top + TILE + LINE), _cut(answer, font), fill=RIGHT if right else WRONG, font=font)
    grid.save(path, "PNG")


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text as far as it fits under a tile."""
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(text + "…") > TILE:
        text = text[:-1]
    return text + "…"
