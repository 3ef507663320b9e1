"""An image processor of transformers that gives a student what it was evaluated on: read by `hub_files` as text.

Transformers' own either squash an image or do not resize it as timm does, and give three channels. Nothing in dearkd
imports this, and dearkd does not need transformers.
"""

from collections.abc import Mapping
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from dearkd.data.image_files import in_channels


class DearKDImageProcessor(BaseImageProcessor):
    """Turns images of any size into `pixel_values` (B, in_chans, image_size, image_size), normalised.

    Args:
        pretrained_cfg: as timm names it, and as `config.json` has it, which some versions of transformers give whole:
            `input_size`, (in_chans, image_size, image_size), where 1 channel converts to grey and 3 to colour; `mean`
            and `std`, per channel, of pixels in [0, 1]; `crop_pct`, where the shorter side becomes `image_size /
            crop_pct` pixels before the centre is cut out, and `interpolation`, of that resizing. An image of the right
            size stays as it is.
        kwargs: transformers' own, and the rest of `config.json`; not kept.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  # transformers looks for a list

    def __init__(self, pretrained_cfg: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__()
        self.pretrained_cfg = dict(pretrained_cfg)

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
        given = self.pretrained_cfg
        channels, _, side = given["input_size"]
        crop_pct, interpolation = given.get("crop_pct", 1.0), given.get("interpolation", "bicubic")
        resize = create_transform(side, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
        pixels = []
        for picture in _pictures(images):
            picture = in_channels(ImageOps.exif_transpose(picture), channels)
            if picture.size == (side, side):
                pixels.append(torch.from_numpy(np.array(picture).reshape(side, side, channels)).permute(2, 0, 1))
            else:
                pixels.append(resize(picture))
        shift, scale = (torch.tensor(given[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
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
