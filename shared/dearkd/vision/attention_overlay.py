"""A picture of where a transformer looked: an image with the shares of its patches over it. Drawn by Pillow alone."""

import io

from PIL import Image
from torch import Tensor

SMALLEST_SIDE = 224
"""The side in pixels to which smaller images are enlarged, by a whole number."""
HOT = (255, 80, 0)
STRONGEST = 0.75
"""The opacity of the hottest patch."""


def attention_overlay(pixels: Tensor, shares: Tensor) -> bytes:
    """A PNG of an image with a heat map over it: the hotter, the larger the share.

    Args:
        pixels: (C, H, W), uint8, C of 1 or 3.
        shares: (rows, columns), none negative; the largest is the hottest.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).convert("RGB")
    factor = max(1, -(-SMALLEST_SIDE // max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    opacity = (shares.float() / shares.max().clamp(min=1e-12) * 255 * STRONGEST).round().byte()
    mask = Image.fromarray(opacity.numpy()).resize(image.size, Image.Resampling.BILINEAR)
    image.paste(HOT, mask=mask)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
