"""Image files by the rules of every reader, so that what is registered can be trained on. No torch here."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from dearkd.errors import CorruptData

IMAGE_FORMATS = ("PNG", "WEBP", "JPEG")
MAX_PIXELS = 2**24
"""Of one image."""

# Pillow opens a grey PNG of 16 bits as "I;16", and did as "I".
_GREY_MODES = frozenset(("1", "L", "LA", "I", "I;16", "I;16B"))


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
    """Whether it has one channel, with or without alpha. Palettes count as colour, whatever colours they hold."""
    return image.mode in _GREY_MODES
