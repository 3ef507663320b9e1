"""Sizes of a distillation that fits a time: how many images and epochs, by the speed that is measured first."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from dearkd.errors import InvalidInput
from dearkd.specs import DatasetFacts, SynthesisSpec, TrainingSpec
from dearkd_distill.inputs import Teacher
from dearkd_synth import DeepInversion
from dearkd_trainer import FrozenTeacher
from dearkd_trainer.model.student import create_student

SHARE = 0.85
"""The part of a budget that is planned; the rest is for what is not measured: starting, writing, evaluating."""
PROBE_IMAGES = 32
PROBE_STEPS = 3
LEAST_EPOCHS = 20
"""A student of fewer epochs learns little, however many images there are [our choice]."""


def measure_synthesis(teacher: Teacher, spec: SynthesisSpec, device: torch.device) -> float:
    """Seconds that one image takes, by a few steps of one batch."""
    classes = spec.classes[: spec.classes_per_batch]
    times: list[float] = []

    class Measured(Exception):
        pass

    def on_step(_: Any) -> None:
        times.append(time.monotonic())
        if len(times) > PROBE_STEPS:
            raise Measured

    count = min(PROBE_IMAGES, spec.batch_size)
    labels = [classes[index % len(classes)] for index in range(count)]
    try:
        with DeepInversion(teacher.module, teacher.spec, spec, device=device, on_step=on_step) as inversion:
            inversion.batch(labels, seed=0)
    except Measured:
        pass
    steps = len(times) - 1  # the first is slower
    iterations = sum(phase.iterations * (phase.input_size / teacher.spec.image_size) ** 2 for phase in spec.phases)
    return (times[-1] - times[0]) / max(1, steps) / count * iterations


def measure_training(teacher: Teacher, spec: TrainingSpec, device: torch.device) -> float:
    """Seconds that one image takes in an epoch of stage one: student forward and backward, teacher forward."""
    task = teacher.spec
    student = create_student(spec.student, task.num_classes, task.in_chans).to(device).train()
    frozen = FrozenTeacher(teacher.module, task).prepared(task, device)
    images = torch.randn(PROBE_IMAGES, task.in_chans, task.image_size, task.image_size, device=device)
    began = 0.0
    for step in range(PROBE_STEPS + 1):
        if step == 1:
            began = time.monotonic()
        frozen.forward(images, [])
        student.forward_training(images, []).logits.square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.monotonic() - began) / PROBE_STEPS / PROBE_IMAGES


def fit(
    seconds: float,
    *,
    per_image: float,
    per_image_and_epoch: float,
    images_per_class: int,
    num_classes: int,
    epochs_for: Callable[[int], int],
) -> tuple[int, int]:
    """Images of each class and epochs that take at most `seconds`.

    Where the defaults take longer, both shrink, epochs by the square root of the images' factor and down to
    `LEAST_EPOCHS`: few images are to be seen often. Our choice.

    Args:
        seconds: to spend.
        per_image: seconds that one image takes to be made.
        per_image_and_epoch: seconds that one image takes in one epoch.
        images_per_class: the default.
        num_classes: that images are made of.
        epochs_for: the default number of epochs for a number of images of each class.

    Raises:
        InvalidInput: if not even one image of each class fits, naming the least budget.
    """

    def cost(images: int, epochs: int) -> float:
        return images * num_classes * (per_image + epochs * per_image_and_epoch)

    planned = seconds * SHARE
    for images in range(images_per_class, 0, -1):
        usual = epochs_for(images)
        epochs = min(usual, max(min(LEAST_EPOCHS, usual), round(usual * (images / images_per_class) ** 0.5)))
        if cost(images, epochs) <= planned:
            return images, epochs
    least = cost(1, min(LEAST_EPOCHS, epochs_for(1))) / SHARE
    raise InvalidInput(
        f"in {seconds:.0f} s not even one image of each of {num_classes} classes can be made and learned here: give a "
        f"budget of at least {least:.0f} s, or fewer classes"
    )


def fit_epochs(seconds: float, *, per_epoch: float, usual: int) -> int:
    """The usual number of epochs, or as many as take at most `seconds`, on images that are there already.

    Args:
        seconds: to spend.
        per_epoch: seconds that one takes.
        usual: the default number.

    Raises:
        InvalidInput: if not even two fit, one of each stage, naming the least budget.
    """
    least = min(2, usual)
    if least * per_epoch > seconds * SHARE:
        raise InvalidInput(
            f"in {seconds:.0f} s the student cannot see these images {least} times here: give a budget of at least "
            f"{math.ceil(least * per_epoch / SHARE)} s, or fewer images"
        )
    return min(usual, int(seconds * SHARE / per_epoch))


def with_epochs(spec: TrainingSpec, facts: DatasetFacts, teacher: Teacher, epochs: int) -> TrainingSpec:
    """The spec with that many epochs, of which stage two has the share that it had."""
    stage_two = max(1, round(epochs * spec.stage_two.epochs / spec.epochs)) if spec.stage_two.epochs else 0
    changes = {
        "stage_one": {"epochs": max(1, epochs - stage_two)},
        "stage_two": {"epochs": stage_two},
        "optimizer": {"warmup_epochs": min(spec.optimizer.warmup_epochs, epochs // 10)},
    }
    posted = spec.model_dump(mode="json")
    for name, fields in changes.items():
        posted[name] |= fields
    return TrainingSpec.resolve(posted, facts, teacher.spec)
