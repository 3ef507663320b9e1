"""Time of a step of the trainer over time of its limit, in both stages.

    python benchmarks/train_step.py --json
    python benchmarks/train_step.py --json --ready
    python benchmarks/train_step.py --architecture dearkd_tiny_patch16_224 --image-size 224 --teacher resnet50

The limit of stage one is the bare student's forward, backward and optimiser step plus the bare teacher's forward; that
of stage two is the student's alone. After every step of the trainer (reading, augmentation, mixing, aligners, clipping
and averaging included) a bare one runs on a copy of the same student, in the same process and precision, so that a
noisy machine slows both alike; the medians are compared. Images are read ahead meanwhile, or with `--ready` before the
first step, so that a loader's process takes nothing from either.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Generator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dearkd.data.shard_files import Sample, write_shard
from dearkd.specs import DatasetFacts, TeacherSpec, TrainingSpec
from dearkd.vision.images import encode
from dearkd.vision.shards import Held, ShardDataset
from dearkd.vision.teachers import build_teacher
from dearkd_trainer import DearKDTrainer, FrozenTeacher
from dearkd_trainer.data.loader import Batch
from dearkd_trainer.data.recipe import autocast, create_optimizer

WARM_UP = 3
CLASSES = 10


class ReadBefore(DearKDTrainer):
    """A trainer that has all its batches in memory before its first step."""

    def _read_ahead(self, held: Held) -> Generator[Batch, None, None]:
        yield from list(super()._read_ahead(held))


class Stopwatch:
    """Told of each step of the trainer; runs and times the bare networks after it."""

    def __init__(self, spec: TrainingSpec, teacher: nn.Module, device: torch.device) -> None:
        self.spec, self.teacher, self.device = spec, teacher, device
        size, channels = spec.student.image_size, 3
        self.x = torch.randn(spec.batch_size, channels, size, size, device=device)
        self.labels = torch.zeros(spec.batch_size, dtype=torch.long, device=device)
        self.steps: list[dict[str, float]] = []

    def begin(self, trainer: DearKDTrainer) -> None:
        self.student = copy.deepcopy(trainer.student).train()
        self.optimizer = create_optimizer(self.student, None, self.spec.optimizer)
        self._began = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        ended = self.now()
        with autocast(self.device, self.spec.precision):
            output = self.student.forward_training(self.x, [])
        loss = F.cross_entropy(output.logits.float(), self.labels)
        if output.dist_logits is not None:
            loss = loss + F.cross_entropy(output.dist_logits.float(), self.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        student = self.now()
        with autocast(self.device, self.spec.precision), torch.no_grad():
            self.teacher(self.x.contiguous(memory_format=torch.channels_last))
        teacher = self.now()
        self.steps.append({"step": ended - self._began, "student": student - ended, "teacher": teacher - student})
        self._began = self.now()


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    size, batch, device = arguments.image_size, arguments.batch_size, torch.device(arguments.device)
    images = batch * (WARM_UP + arguments.steps)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    write_shard(
        folder / "train.tar",
        (
            Sample(f"{n:06d}", stored, "png", n % CLASSES, {})
            for n, stored in enumerate(islice(cycle([encode(image, "png") for image in pixels]), images))
        ),
    )
    teacher_spec = TeacherSpec(
        name="benchmark",
        architecture=arguments.teacher,
        num_classes=CLASSES,
        in_chans=3,
        image_size=size,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    spec = TrainingSpec.resolve(
        {
            "dataset": "benchmark",
            "teacher": "benchmark",
            "student": {"architecture": arguments.architecture},
            "stage_one": {"epochs": 1},
            "stage_two": {"epochs": 1},
            "batch_size": batch,
            "holdout": 0.0,
            "eval_every": 10**6,
            "checkpoint_every": 10**6,
            "workers": arguments.workers,
            "precision": arguments.precision,
        },
        DatasetFacts(
            num_samples=images, num_classes=CLASSES, image_size=size, in_chans=3, synthetic=True, mirrored=True
        ),
        teacher_spec,
    )
    torch.manual_seed(0)
    teacher = build_teacher(teacher_spec)
    stopwatch = Stopwatch(spec, teacher, device)
    trainer = (ReadBefore if arguments.ready else DearKDTrainer)(
        spec,
        ShardDataset([folder / "train.tar"], num_classes=CLASSES, in_chans=3),
        directory=folder / "run",
        teacher=FrozenTeacher(teacher, teacher_spec),
        device=device,
        on_step=stopwatch,
    )
    stopwatch.begin(trainer)
    trainer.fit()
    one, two = stopwatch.steps[: len(stopwatch.steps) // 2], stopwatch.steps[len(stopwatch.steps) // 2 :]
    return {
        "architecture": arguments.architecture,
        "teacher": arguments.teacher,
        "image_size": size,
        "batch_size": batch,
        "precision": arguments.precision,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "workers": arguments.workers,
        "batches": "ready" if arguments.ready else "read ahead",
        "torch": torch.__version__,
        "stage_one": compare(one, "student", "teacher"),
        "stage_two": compare(two, "student"),
    }


def compare(steps: list[dict[str, float]], *limit: str) -> dict[str, float]:
    """Medians of a step and of its limit, without the first ones of the stage."""
    seconds = {name: statistics.median(step[name] for step in steps[WARM_UP:]) for name in ("step", *limit)}
    bound = sum(seconds[name] for name in limit)
    return {f"{name}_milliseconds": round(value * 1000, 3) for name, value in seconds.items()} | {
        "ratio": round(seconds["step"] / bound, 3)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="dearkd_micro_patch8_32")
    parser.add_argument("--teacher", default="resnet10t")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ready", action="store_true", help="read all batches before the first step")
    parser.add_argument("--steps", type=int, default=20, help="of each stage")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:>12}  {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
