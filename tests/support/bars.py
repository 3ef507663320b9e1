"""What a tiny run is made of: grey 16 px images of three classes, and the spec of an untrained teacher."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from dearkd.specs import TeacherSpec, TrainingSpec
from dearkd_trainer.train.trainer import DearKDTrainer, Metrics

CLASSES, SIDE = 3, 16
STEPS = 4
"""Of an epoch of `make_spec`'s: 54 images by 16."""

TIMED = {"images_per_second", "data_wait", "teacher_share", "peak_memory", "threads"}
"""What may differ between two runs of the same spec."""

TEACHER = TeacherSpec(
    name="tiny",
    architecture="resnet10t",
    num_classes=CLASSES,
    in_chans=1,
    image_size=SIDE,
    mean=[0.4],
    std=[0.3],
)
TASK = TEACHER.at(SIDE)


def bars(count: int) -> list[tuple[torch.Tensor, int]]:
    """Grey noise with a bright bar whose height in the image is the class."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(count):
        label = number % CLASSES
        image = torch.randint(0, 100, (1, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        image[:, 2 + 5 * label : 4 + 5 * label] += 150
        samples.append((image, label))
    return samples


class MakeSpec(Protocol):
    """Posted fields → a resolved spec."""

    def __call__(self, **posted: Any) -> TrainingSpec: ...


MakeTrainer = Callable[..., DearKDTrainer]


def curve(history: list[Metrics]) -> list[Metrics]:
    """The rows without what the machine decides."""
    return [{name: value for name, value in row.items() if name not in TIMED} for row in history]


def stop_at(last_step: int) -> Callable[[int, int], None]:
    """An `on_step` that ends the run."""

    def on_step(done: int, total: int) -> None:
        if done == last_step:
            raise KeyboardInterrupt

    return on_step
