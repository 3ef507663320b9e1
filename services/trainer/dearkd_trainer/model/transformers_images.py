"""An image processor of transformers that gives a student what it was evaluated on: read by `hub_files` as text.

Transformers' own either squash an image or do not resize it as timm does, and give three channels. Nothing in dearkd
imports this, and dearkd does not need transformers.
"""

from collections.abc import Sequence
from typing import Any, Literal

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from dearkd.data.image_files import in_channels


class DearKDImageProcessor(BaseImageProcessor):
    """From images of any size to `pixel_values` (B, in_chans, image_size, image_size), normalised.

    Args:
        image_size: side of the result in pixels.
        in_chans: 1 converts to grey, 3 to colour.
        mean, std: per channel, of pixels in [0, 1].
        crop_pct: the shorter side becomes `image_size / crop_pct` pixels before the centre is cut out.
        interpolation: of the resizing, as timm names it. An image of the right size stays as it is.
        kwargs: transformers' own.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  # transformers looks for a list

    def __init__(
        self,
        image_size: int = 224,
        in_chans: Literal[1, 3] = 3,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        crop_pct: float = 1.0,
        interpolation: str = "bicubic",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size, self.in_chans = image_size, in_chans
        self.mean, self.std = list(mean), list(std)
        self.crop_pct, self.interpolation = crop_pct, interpolation

    def preprocess(self, images: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        """A `BatchFeature` of `pixel_values`.

        Args:
            images: one or a list of Pillow images, or of uint8 arrays or tensors (H, W), (H, W, C) or (C, H, W), or a
                batch of these.
            return_tensors: "pt" or "np"; float32 either way.
            kwargs: are not looked at.

        Raises:
            ValueError: if pixels are not uint8, or of another shape.
        """
        pictures = [ImageOps.exif_transpose(picture) for picture in _pictures(images)]
        resize = create_transform(
            self.image_size, crop_pct=self.crop_pct, interpolation=self.interpolation, normalize=False
        )
        pixels = []
        for picture in pictures:
            picture = in_channels(picture, self.in_chans)
            if picture.size == (self.image_size, self.image_size):
                array = np.array(picture)
                pixels.append(torch.from_numpy(array.reshape(*array.shape[:2], self.in_chans)).permute(2, 0, 1))
            else:
                pixels.append(resize(picture))
        shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        values = (torch.stack(pixels).float() / 255 - shift) / scale
        return BatchFeature({"pixel_values": values.numpy()}, tensor_type=return_tensors)


def _pictures(images: Any) -> list[Image.Image]:
    """Pillow images of whatever was given."""
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, list | tuple):
        return [picture for image in images for picture in _pictures(image)]
    array = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if array.ndim == 4:
        return [picture for image in array for picture in _pictures(image)]
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3)):
        raise ValueError(
            f"an image of {array.dtype} and shape {array.shape}: give Pillow images, or uint8 arrays (H, W), (H, W, C) "
            "or (C, H, W) of 1 or 3 channels"
        )
    return [Image.fromarray(np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array))]
