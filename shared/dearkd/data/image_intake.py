"""Image files as people have them, made such as shards take: what each is, and the bytes that are stored of it."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer
from PIL import Image, UnidentifiedImageError

from dearkd.data.image_files import IMAGE_FORMATS, MAX_PIXELS, in_channels, is_grey, is_turned, upright
from dearkd.data.tar_members import MAX_MEMBER_BYTES

STORED_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""By Pillow's format: files of these are stored as they are. MPO is JPEG with more pictures behind the first."""
CONVERTED_FORMATS = ("GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM")
"""Read here and stored as PNG. Formats that Pillow knows by a weak sign only (TGA) are left out."""

# A file so named is taken for an image that cannot be read, not for something else.
# fmt: off
IMAGE_NAMES = frozenset((
    ".png", ".apng", ".webp", ".jpg", ".jpeg", ".jfif", ".jpe", ".jp2", ".j2k", ".jpx", ".bmp",
    ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif",
    ".jxl", ".psd", ".tga", ".ico", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf",
    ".rw2",
))
# fmt: on

Channels = Literal[1, 3]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image, read whole once."""

    path: Path
    format: str
    """Pillow's name for it."""
    grey: bool
    turned: bool
    """By EXIF."""
    frames: int
    """Of which only the first is used."""
    shrunk: bool
    """By the resizing that was asked for."""
    pixels: int
    """As stored."""

    def is_kept(self, channels: Channels) -> bool:
        """Whether the file itself is stored."""
        fitting = self.grey == (channels == 1)
        return self.format in STORED_SUFFIXES and fitting and not self.turned and not self.shrunk

    def size(self, channels: Channels) -> int:
        """Bytes as stored; at most about that many where it is converted."""
        return self.path.stat().st_size if self.is_kept(channels) else self.pixels * channels

    def stored(self, channels: Channels, resize: int | None) -> tuple[bytes, str]:
        """The bytes that stand for it in a shard, and their suffix: its own, or else a PNG of 8 bits a channel.

        Raises:
            typer.BadParameter: naming the file, if it cannot be read any more or is too large.
        """
        if self.is_kept(channels):
            return self.path.read_bytes(), STORED_SUFFIXES[self.format]
        with _reading(self.path) as image:
            if resize is not None:
                image.draft(None, (resize, resize))
            picture = in_channels(upright(image), channels)
            if resize is not None and min(picture.size) > resize:
                picture = picture.resize(_shrunk(picture.size, resize), Image.Resampling.LANCZOS)
            file = io.BytesIO()
            Image.frombytes(picture.mode, picture.size, picture.tobytes()).save(file, "PNG")
        return file.getvalue(), "png"


def examine(path: Path, resize: int | None) -> ImageFile | None:
    """What an image file is, by its content; all its pixels are decoded. None where it is no image.

    Args:
        path: a regular file.
        resize: short side that larger images are to be stored at, in pixels.

    Raises:
        typer.BadParameter: naming a file that is an image by its name or its first bytes and cannot be in a dataset:
            damaged, of a format that is not read, or too large.
    """
    with _opening(path) as image:
        if image is None:
            return None
        size = image.size
        if resize is None and size[0] * size[1] > MAX_PIXELS:
            raise typer.BadParameter(
                f"{shown(path)} has {size[0]}×{size[1]} pixels; an image may have {MAX_PIXELS:,}: --resize 512 stores "
                "larger images with a short side of 512 pixels"
            )
        shrunk = resize is not None and min(size) > resize
        if shrunk and resize is not None:
            size = _shrunk(size, resize)
            image.draft(None, (resize, resize))
        if size[0] * size[1] > MAX_PIXELS:
            raise typer.BadParameter(f"{shown(path)} would have {size[0]}×{size[1]} pixels: choose a smaller --resize")
        image_format = image.format or ""
        frames = 1 if image_format == "MPO" else getattr(image, "n_frames", 1)
        turned = is_turned(image)
        if image.mode == "F":
            raise typer.BadParameter(f"{shown(path)} holds floating point numbers, not pixels: convert it to 8 bits")
        found = ImageFile(path, image_format, is_grey(image), turned, frames, shrunk, size[0] * size[1])
    if found.format in STORED_SUFFIXES and not (turned or shrunk) and path.stat().st_size > MAX_MEMBER_BYTES:
        size_now = path.stat().st_size
        raise typer.BadParameter(f"{shown(path)} has {size_now} bytes; an image may have {MAX_MEMBER_BYTES}")
    return found


def shown(path: Path | str) -> str:
    """A path as it can be printed anywhere: quoted and escaped where it is not UTF-8 or holds control characters."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


@contextmanager
def _opening(path: Path) -> Iterator[Image.Image | None]:
    """The image, or None where the file is no image."""
    if path.stat().st_size == 0 or not _is_image(path):
        if path.suffix.lower() not in IMAGE_NAMES and not _is_heic(path):
            yield None
            return
        if path.stat().st_size == 0:
            raise typer.BadParameter(f"{shown(path)} is empty (0 bytes): fetch it again, or remove it")
        raise typer.BadParameter(
            f"{shown(path)} cannot be read as an image ({', '.join((*IMAGE_FORMATS, *CONVERTED_FORMATS))}): mend, "
            "convert or remove it"
        )
    with _reading(path) as image:
        yield image


def _is_image(path: Path) -> bool:
    try:
        with _reading(path):
            return True
    except UnidentifiedImageError:
        return False


@contextmanager
def _reading(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is large; it refuses what is larger still, and so do we.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=(*IMAGE_FORMATS, *CONVERTED_FORMATS)) as image:
                yield image
    except UnidentifiedImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise typer.BadParameter(f"{shown(path)} is not a readable image: {error}; mend or remove it") from None


def _is_heic(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(12)
    return begin[4:8] == b"ftyp" and begin[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def _shrunk(size: tuple[int, int], short: int) -> tuple[int, int]:
    scale = short / min(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
