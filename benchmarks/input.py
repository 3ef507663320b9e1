"""How long a step waits for its images, and how fast the loader reads them.

    python benchmarks/input.py --json

Two questions, on images of noise in the setting of the demo (32 pixels, grey, the `small` recipe, a resnet10t, one
loader worker):

- `data_wait`: the part of an epoch in which the step stood still for its images, by stage; below 0.02 is wanted.
  The trainer decodes a set of this size once and keeps it in memory; `--from-shards` has it read and decode every image
  from its shard instead, as it does with sets above 256 MiB.
- images a second through the loader, without any training: read and decoded from shards, and the same images held in
  memory, both under the recipe's augmentation and with nothing but normalisation (`plain`).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dearkd.data.shard_files import Sample, write_shard
from dearkd.specs import AugmentationSpec, DatasetFacts, TeacherSpec, TrainingSpec
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset
from dearkd.vision.teachers import build_teacher
from dearkd_trainer import DearKDTrainer, FrozenTeacher
from dearkd_trainer.data.loader import EpochBatches, create_loader
from dearkd_trainer.data.recipe import train_transform

CLASSES, MEAN, STD = 10, [0.3], [0.35]


class FromShards(ShardDataset):
    """Never held in memory."""

    def preload(self, max_bytes: int = 0) -> bool:
        return False


def write_shards(folder: Path, images: int, size: int, per_shard: int) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    paths = []
    for first in range(0, images, per_shard):
        pixels = torch.randint(
            0, 256, (min(per_shard, images - first), 1, size, size), dtype=torch.uint8, generator=generator
        )
        paths.append(folder / f"train-{len(paths):06d}.tar")
        write_shard(
            paths[-1],
            (
                Sample(f"{first + number:08d}", encode(image, "png"), "png", number % CLASSES, {})
                for number, image in enumerate(pixels)
            ),
        )
    return paths


def waits(dataset: ShardDataset, size: int, workers: int, epochs: int, folder: Path) -> dict[str, float]:
    """Of the epochs of each stage but the first, in which the loader starts."""
    teacher_spec = TeacherSpec(
        name="benchmark",
        architecture="resnet10t",
        num_classes=CLASSES,
        in_chans=1,
        image_size=size,
        mean=MEAN,
        std=STD,
    )
    spec = TrainingSpec.resolve(
        {
            "dataset": "benchmark",
            "teacher": "benchmark",
            "stage_one": {"epochs": epochs + 1},
            "stage_two": {"epochs": epochs + 1},
            "eval_every": 10**6,
            "checkpoint_every": 10**6,
            "workers": workers,
        },
        DatasetFacts(
            num_samples=len(dataset), num_classes=CLASSES, image_size=size, in_chans=1, synthetic=True, mirrored=False
        ),
        teacher_spec,
    )
    torch.manual_seed(0)
    rows = (
        DearKDTrainer(
            spec,
            dataset,
            directory=folder,
            teacher=FrozenTeacher(build_teacher(teacher_spec), teacher_spec),
        )
        .fit()
        .history
    )
    stages = {stage: [row for row in rows if row["stage"] == stage][1:] for stage in (1, 2)}
    return {
        f"stage_{stage}_{name}": round(float(np.median([row[name] for row in kept])), 4)
        for stage, kept in stages.items()
        for name in ("data_wait", "images_per_second")
    }


def speed(dataset: ShardDataset, augmentation: AugmentationSpec, size: int, workers: int, epochs: int) -> float:
    """Images a second, from the first batch on."""
    order = EpochBatches(np.arange(len(dataset)), 32, seed=0, epochs=range(epochs))
    transform = train_transform(augmentation, image_size=size, mean=MEAN, std=STD)
    batches = create_loader(dataset, transform, order, seed=0, workers=workers, pin_memory=False)
    next(batches)
    began = time.perf_counter()
    images = sum(len(labels) for _, labels in batches)
    return images / (time.perf_counter() - began)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    size, workers, epochs = arguments.image_size, arguments.workers, arguments.epochs
    paths = write_shards(folder, arguments.images, size, 500)

    def open_dataset(kind: type[ShardDataset]) -> ShardDataset:
        return kind(paths, num_classes=CLASSES, in_chans=1)

    in_shards, in_memory = open_dataset(FromShards), open_dataset(ShardDataset)
    if not in_memory.preload(2**33):
        raise SystemExit("the images do not fit into memory")
    recipe = TrainingSpec.resolve(
        {"dataset": "benchmark", "stage_one": {"distillation": "none", "weights": {"hidden": 0.0}}},
        DatasetFacts(
            num_samples=len(in_memory), num_classes=CLASSES, image_size=size, in_chans=1, synthetic=True, mirrored=False
        ),
        None,
    ).augmentation
    plain = recipe.model_copy(update={"degrees": 0.0, "translate": 0.0, "shear": 0.0, "hflip": 0.0})
    figures: dict[str, Any] = {
        "images": len(in_memory),
        "image_size": size,
        "workers": workers,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    for name, augmentation in (("augmented", recipe), ("plain", plain)):
        # By turns, so that a noisy machine slows both alike.
        turns = [
            (
                speed(in_shards, augmentation, size, workers, epochs),
                speed(in_memory, augmentation, size, workers, epochs),
            )
            for _ in range(arguments.turns)
        ]
        shards, memory = np.median(np.array(turns), axis=0)
        figures[name] = {
            "shards_per_second": round(float(shards)),
            "memory_per_second": round(float(memory)),
            "ratio": round(float(np.median([one / other for one, other in turns])), 3),
        }
    source = in_shards if arguments.from_shards else in_memory
    return figures | waits(source, size, workers, epochs, folder / "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--from-shards", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:>26}  {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
