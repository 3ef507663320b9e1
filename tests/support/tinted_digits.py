"""Real digits in two colours, and a network that knows them by padding, colours and contrast as they are."""

from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from dearkd.specs import TeacherSpec
from dearkd.vision.images import to_input
from dearkd.vision.teachers import build_teacher, features_and_logits
from dearkd_trainer.demo.digits import real_digits

NAMES = [str(label) for label in range(12)]
"""Label d is the digit d of 0 to 5 in red, d + 6 the same in blue: by name they would be 0, 1, 10, 11, 2, …"""
SPEC = TeacherSpec(
    name="tinted",
    architecture="tf_mobilenetv3_small_075",
    num_classes=12,
    in_chans=3,
    image_size=32,
    mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
)


@cache
def tinted_digits() -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, 32, 32), uint8, and labels (N,), of 12 classes, in random order."""
    digits, _ = real_digits()
    keep = digits.labels < 6
    grey, labels = digits.images[keep], digits.labels[keep]
    blue = torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < 0.5
    dark = grey // 3
    red = torch.cat([grey, dark, dark], 1)
    return torch.where(blue[:, None, None, None], red.flip(1), red), labels + 6 * blue


@cache
def tinted_teacher(architecture: str = SPEC.architecture) -> nn.Module:
    """A real network as it is initialised, with statistics of these digits, and a classifier fitted by ridge regression
    to the first 600: no step of training, and yet an answer that its preprocessing decides. To be left as it is."""
    pixels, labels = tinted_digits()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = build_teacher(SPEC.model_copy(update={"architecture": architecture}))
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the mean over all that it sees
        inputs = to_input(pixels[:600], SPEC)
        for part in inputs.split(200):
            network.train()(part)
        features = features_and_logits(network.eval(), inputs)[0].double()
        centre = features.mean(0)
        deviations = features - centre
        wanted = 12 * nn.functional.one_hot(labels[:600], 12).double() - 1
        gram = deviations.T @ deviations
        gram += 1e-3 * gram.trace() / len(gram) * torch.eye(len(gram)).double()
        weight = torch.linalg.solve(gram, deviations.T @ wanted).T
        classifier = network.get_classifier()
        classifier.weight.copy_(weight)
        classifier.bias.copy_(wanted.mean(0) - weight @ centre)
    return network


def write_class_folders(folder: Path, pixels: Tensor, labels: Tensor, names: list[str]) -> Path:
    """PNG files in a folder for each class."""
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / names[label] / f"{number:04d}.png")
    return folder
