"""Pixels: between uint8, the teacher's normalised input, and image files."""

import io
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dearkd.data.image_files import MAX_PIXELS, in_channels, is_grey, open_image, upright
from dearkd.specs import TeacherSpec

ImageFormat = Literal["png", "webp", "jpeg"]

SUFFIXES: dict[ImageFormat, str] = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
"""File suffixes, as they stand in a shard."""


def to_input(pixels: Tensor, teacher: TeacherSpec) -> Tensor:
    """The teacher's normalised input.

    Args:
        pixels: (N, C, H, W), uint8, or floating in [0, 1].
        teacher: gives mean and standard deviation.

    Returns:
        (N, C, H, W), float32 where the pixels were uint8, else of their type.
    """
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / 255
    mean, std = _mean_and_std(teacher, pixels)
    return (pixels - mean) / std


def quantise(inputs: Tensor, teacher: TeacherSpec) -> Tensor:
    """The nearest uint8 pixels (N, C, H, W) of normalised input (N, C, H, W)."""
    mean, std = _mean_and_std(teacher, inputs)
    return ((inputs * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def pixel_range(teacher: TeacherSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    """The values of black and white in normalised space: two tensors (1, C, 1, 1) of the type and device of `like`."""
    mean, std = _mean_and_std(teacher, like)
    return (0 - mean) / std, (1 - mean) / std


def encode(image: Tensor, image_format: ImageFormat) -> bytes:
    """An image file: PNG, lossless WebP, or JPEG of quality 95 without chroma subsampling.

    Args:
        image: (C, H, W), uint8, C of 1 or 3.
        image_format: the same image gives the same bytes, for one version of Pillow.
    """
    array = image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    file = io.BytesIO()
    if image_format == "png":
        picture.save(file, "PNG")
    elif image_format == "webp":
        picture.save(file, "WEBP", lossless=True)
    else:
        picture.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def decode(data: bytes, in_chans: Literal[1, 3] | None = None, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The pixels (C, H, W), uint8, of a PNG, WebP or JPEG file.

    16 bits of grey become the nearest of 8 (65535 is 255); alpha is dropped; a picture that EXIF says is turned is set
    upright, so that it is the same one as in a viewer.

    Args:
        data: the file's bytes; no other format is opened, whatever Pillow could read.
        in_chans: converts to grey (1) or RGB (3); None keeps grey images grey and makes all others RGB.
        max_pixels: refuse images of more, before they are decompressed.

    Raises:
        CorruptData: if it is no such image, is truncated, or is too large.
    """
    with open_image(data, max_pixels=max_pixels) as picture:
        grey = in_chans == 1 or (in_chans is None and is_grey(picture))
        array = np.array(in_channels(upright(picture), 1 if grey else 3))
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())


def _mean_and_std(teacher: TeacherSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (like.new_tensor(values).view(1, -1, 1, 1) for values in (teacher.mean, teacher.std))
    return mean, std
