"""Pictures inside a page, as data URIs, each small enough for dozens of them."""

import base64
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

TILE = 128
"""The side in pixels of a picture of one image: smaller images are enlarged by a whole number, larger ones shrunk."""
HEAT = (90, 130, 235)
"""The colour of a share of 1 in a picture of shares, which shows on light and on dark pages."""


def embedded(image: Image.Image, *, lossless: bool = False) -> str:
    """The image as a data URI, WebP."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=75, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def tile(pixels: Tensor) -> Image.Image:
    """An image (C, H, W), uint8, C of 1 or 3, in about the size of a tile."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
    if image.width > TILE:
        return image.resize((TILE, TILE), Image.Resampling.LANCZOS)
    times = max(1, TILE // image.width)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def heated(image: Image.Image, shares: Tensor) -> Image.Image:
    """The image under a heat map of shares (rows, columns), none negative; the largest is the hottest."""
    values = (shares / shares.max().clamp(min=1e-12)).numpy()
    colours = (matplotlib.colormaps["inferno"](values)[:, :, :3] * 255).round().astype(np.uint8)
    heat = Image.fromarray(colours).resize(image.size, Image.Resampling.BILINEAR)
    return Image.blend(image, heat, 0.6)


def share_map(rows: Sequence[Sequence[float]]) -> Image.Image:
    """A matrix of shares in [0, 1] as a picture, a pixel each; 0 is transparent, and small shares are seen."""
    values = np.asarray(rows, dtype=np.float64)
    picture = np.empty((*values.shape, 4), dtype=np.uint8)
    picture[:, :, :3] = HEAT
    picture[:, :, 3] = (np.sqrt(values.clip(0, 1)) * 255).round()
    return Image.fromarray(picture)
