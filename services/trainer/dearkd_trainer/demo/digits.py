"""scikit-learn's real handwritten digits: the fixed split, a CNN trained on one side, and both as WebDataset."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from dearkd.data.shard_files import Sample, Shard, shard_name, write_shard
from dearkd.data.shard_info import info_json
from dearkd.identifiers import new_id
from dearkd.specs import TeacherSpec
from dearkd.storage.objects import Storage
from dearkd.vision.images import encode, to_input
from dearkd.vision.teachers import save_teacher

IMAGE_SIZE = 32
HELD_OUT = 540
SPLIT_SEED = 0
"""The seed of the split alone: the held-out digits are the same whatever the demo's seed."""


@dataclass(frozen=True, slots=True)
class Digits:
    """Images (N, 1, 32, 32), uint8, and labels (N,)."""

    images: Tensor
    labels: Tensor


def real_digits() -> tuple[Digits, Digits]:
    """1,257 digits to train on and 540 held out, stratified by class, enlarged from 8×8 to 32×32 pixels."""
    data = load_digits()
    grey = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    images = F.interpolate(grey, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear").round().to(torch.uint8)
    labels = torch.from_numpy(data.target).long()
    train, held_out = train_test_split(
        torch.arange(len(labels)).numpy(), test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=data.target
    )
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


def train_teacher(
    train: Digits, weights: Path, *, seed: int, epochs: int = 12, on_epoch: Callable[[int, int], None] | None = None
) -> tuple[TeacherSpec, torch.nn.Module]:
    """The CNN whose data is then gone: timm's resnet10t, about 25 s on two cores. Writes safetensors.

    Returns:
        Its spec and the model in eval mode.
    """
    pixels = train.images.float() / 255
    spec = TeacherSpec(
        name=f"resnet10t on digits, seed {seed}",
        architecture="resnet10t",
        num_classes=10,
        in_chans=1,
        image_size=IMAGE_SIZE,
        mean=[round(pixels.mean().item(), 4)],
        std=[round(pixels.std().item(), 4)],
        class_names=[str(digit) for digit in range(10)],
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = timm.create_model(spec.architecture, num_classes=10, in_chans=1)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    steps = len(train.labels) // 64
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=epochs * steps)
    inputs = to_input(train.images, spec)
    for epoch in range(epochs):
        order = torch.randperm(len(train.labels), generator=generator)
        for batch in order.split(64)[:steps]:
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            moved = inputs[batch].roll(shift, (2, 3)).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(moved), train.labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if on_epoch:
            on_epoch(epoch + 1, epochs)
    save_teacher(model, weights)
    return spec, model.eval()


def top1(model: torch.nn.Module, digits: Digits, spec: TeacherSpec) -> float:
    """The fraction of digits that a model names right."""
    with torch.inference_mode():
        predicted = torch.cat([model(part).argmax(1) for part in to_input(digits.images, spec).split(256)])
    return (predicted == digits.labels).double().mean().item()


def store_digits(digits: Digits, storage: Storage, folder: Path) -> str:
    """Put digits under the storage root as a WebDataset; returns the prefix to register."""
    prefix = f"datasets/{new_id('ds')}"
    path = folder / shard_name(0)
    shard: Shard = write_shard(
        path,
        (
            Sample(key=f"{i:09d}", image=encode(image, "png"), suffix="png", label=label, fields={"label": label})
            for i, (image, label) in enumerate(zip(digits.images, digits.labels.tolist(), strict=True))
        ),
    )
    storage.put(f"{prefix}/{shard.name}", path)
    storage.put(f"{prefix}/_info.json", info_json([shard]))
    path.unlink()
    return prefix
