"""Usual ways in which networks take images and count classes: what a teacher may have been trained with."""

from collections.abc import Mapping

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import timm

from dearkd.choices import ClassOrder

NORMALISATIONS: Mapping[int, Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    3: {
        "mean and std of ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "pixels from -1 to 1": ((0.5,) * 3, (0.5,) * 3),
        "pixels from 0 to 1": ((0.0,) * 3, (1.0,) * 3),
        "pixels from 0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
        "pixels from 0 to 255 less ImageNet's mean": ((0.485, 0.456, 0.406), (1 / 255,) * 3),
    },
    1: {
        "mean and std of ImageNet in grey": ((0.449,), (0.226,)),
        "mean and std of MNIST": ((0.1307,), (0.3081,)),
        "pixels from -1 to 1": ((0.5,), (0.5,)),
        "pixels from 0 to 1": ((0.0,), (1.0,)),
        "pixels from 0 to 255": ((0.0,), (1 / 255,)),
    },
}
"""Usual means and standard deviations, of pixels in [0, 1], by number of channels."""

ORDERS: Mapping[ClassOrder, str] = {
    "name": "by name, as torchvision sorts them",
    "natural": "in natural order, as timm sorts them",
    "number": "by number",
}


def padding_twin(architecture: str) -> str | None:
    """The timm network that takes the same weights and pads as TensorFlow does, or as PyTorch; None without one."""
    other = architecture.removeprefix("tf_") if architecture.startswith("tf_") else f"tf_{architecture}"
    return other if timm.is_model(other) else None
