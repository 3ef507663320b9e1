"""Image files by the rules of every reader, so that what is registered can be trained on. No torch here."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from PIL import Image, UnidentifiedImageError

from dearkd.errors import CorruptData

IMAGE_FORMATS = ("PNG", "WEBP", "JPEG")
MAX_PIXELS = 2**24
"""Most pixels of one image that are decoded."""

# Pillow opens a grey PNG of 16 bits as "I;16", and did as "I".
_GREY_MODES = frozenset(("1", "L", "LA", "I", "I;16", "I;16B", "I;16L"))

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A PNG, WebP or JPEG file; its header is read here, its pixels when they are first asked for.

    Args:
        data: the file's bytes; no other format is opened, whatever Pillow could read.
        max_pixels: refuse images of more, before they are decompressed.

    Raises:
        CorruptData: if it is no such image or is too large, or what the context does with it shows it truncated.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise CorruptData(
                    f"an image of {image.width}×{image.height} pixels: at most {max_pixels} pixels are read"
                )
            yield image
    except UnidentifiedImageError:  # whose text names the file object, not the file
        begin = f", which begin with {data[:8]!r}" if data else ""
        raise CorruptData(
            f"not a readable PNG, WebP or JPEG image: none is found in its {len(data)} bytes{begin}"
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptData(f"not a readable PNG, WebP or JPEG image: {error}") from error


def is_grey(image: Image.Image) -> bool:
    """Tell whether an image has one channel, with or without alpha. Palettes count as colour, even grey ones."""
    return image.mode in _GREY_MODES


def is_turned(image: Image.Image) -> bool:
    """Tell whether EXIF says that the picture is to be turned or mirrored. Loads the pixels."""
    return _turn(image) is not None


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation has it, or itself where that says nothing. Loads the pixels."""
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def in_channels(image: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """The picture in grey (mode L) or colour (RGB), as Pillow converts it.

    16 bits of grey become the nearest of 8 (65535 is 255); alpha is dropped.
    """
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255: nearly every value of 16 bits would be white.
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5)
        image = image.convert("L")
    return image.convert("L" if channels == 1 else "RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    image.load()  # a TIFF file is turned by Pillow itself, here
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return None  # damaged EXIF says nothing
