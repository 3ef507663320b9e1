"""The parts of a million images that compute, in small: two shards of 224 px, and 200 steps on the rehearsal's shards.

    python benchmarks/million.py --images 200000 --keep FOLDER
    python benchmarks/million_true.py --keep FOLDER/200000 --json

Through the workers' own services: a ResNet-50 whose weights and statistics are random (those of random images) is
inverted into two shards, with all terms of the preset `auto`, its feature bank among them; and a DeiT-Ti learns from
the dataset that `million.py --keep` left, one image of each class from shards that pass in windows, with no teacher.
Each is measured in a process of its own: CPU seconds, resident memory before the work, at its beginning and its end.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from dearkd.data.manifests import datasets
from dearkd.identifiers import new_id
from dearkd.local.embedded_redis import embedded_redis
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, TeacherSpec, TrainingSpec
from dearkd.storage.catalog import Teacher, describe_file, teachers
from dearkd.vision.teachers import build_teacher
from dearkd.work.worker import drain, open_ledger
from dearkd_synth.service import job as synthesis
from dearkd_trainer.service import job as training

CLASSES, SIDE, STEPS = 1000, 224, 200
TEACHER = TeacherSpec(
    name="random", architecture="resnet50", num_classes=CLASSES, in_chans=3, image_size=SIDE,
    mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
)  # fmt: skip


def mib() -> int:
    return round(psutil.Process().memory_info().rss / 2**20)


def add_teacher(settings: Settings, folder: Path) -> Teacher:
    """A ResNet-50 as it is initialised, with the statistics of a few random images."""
    torch.manual_seed(0)
    network = build_teacher(TEACHER).train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(4, 3, SIDE, SIDE))
    save_file(network.state_dict(), folder / "random.safetensors")
    file = describe_file(folder / "random.safetensors")
    teacher = Teacher(
        id=new_id("tch"), created_at=datetime.now(UTC), sha256=file.sha256, bytes=file.bytes,
        parameters=sum(weight.numel() for weight in network.parameters()), batch_norm_layers=53,
        **TEACHER.model_dump(),
    )  # fmt: skip
    storage = open_ledger(settings).store.storage
    storage.put(f"teachers/{teacher.id}/weights.safetensors", folder / "random.safetensors")
    teachers(storage).create(teacher)
    return teacher


def synthesise(
    settings: Settings, folder: Path, images: int, iterations: int, batch_size: int | None
) -> dict[str, Any]:
    """Two shards of so many images each, of two classes, each in two batches, or in batches of that size."""
    teacher = add_teacher(settings, folder)
    phases = [{"resolution": SIDE, "input_size": SIDE, "iterations": iterations}]
    posted = {
        "teacher": teacher.id, "classes": [0, 1], "images_per_class": images, "shard_samples": images,
        "batch_size": batch_size or images // 2, "phases": phases, "min_teacher_accuracy": 0,
    }  # fmt: skip
    spec = SynthesisSpec.resolve(posted, teacher.spec)
    ledger = open_ledger(settings)
    job = ledger.store.create_synthesis(spec, images=spec.num_samples)
    began, before = time.process_time(), mib()
    with synthesis.ShardMaker() as worker:
        units = drain("synthesis", worker.perform, settings)
    ended = ledger.store.get(job.id)
    if ended.status != "succeeded":
        sys.exit(f"{job.id} is {ended.status}: {ended.error}")
    manifest = datasets(ledger.store.storage).get(str((ended.result or {})["dataset"]))
    weights = {name: weight for name, weight in spec.weights.model_dump().items() if weight}
    return {
        "units": units, "shards": len(manifest.shards), "images": manifest.num_samples, "iterations": iterations,
        "bytes": sum(shard.bytes for shard in manifest.shards), "weights": weights,
        "cpu_seconds": round(time.process_time() - began, 1), "mib_before": before,
    }  # fmt: skip


def train(settings: Settings, dataset: str) -> dict[str, Any]:
    """200 steps of five images, one image of each class, from windows of 16 shards."""
    ledger = open_ledger(settings)
    manifest = datasets(ledger.store.storage).get(dataset)
    posted = {
        "dataset": dataset, "teacher": None, "recipe": "deit",
        "student": {"architecture": "dearkd_tiny_patch16_224", "image_size": SIDE, "patch_size": 16},
        "batch_size": CLASSES // STEPS, "fraction": CLASSES / manifest.num_samples / 2, "holdout": 0, "workers": 0,
        "shuffle_shards": 16, "stage_one": {"epochs": 0}, "stage_two": {"epochs": 1},
        "optimizer": {"warmup_epochs": 0},
    }  # fmt: skip
    spec = TrainingSpec.resolve(posted, manifest.facts, None)
    job = ledger.store.create_training(spec, epochs=spec.epochs, waits_for=None)
    seen: list[tuple[int, int, float]] = []
    report = training.RunReporter.on_step

    def noted(self: training.RunReporter, step: int, steps: int) -> None:
        seen.append((step, mib(), time.process_time()))
        report(self, step, steps)

    training.RunReporter.on_step = noted  # type: ignore[method-assign]  # the service's own, and a note
    began, before = time.process_time(), mib()
    drain("training", training.perform, settings)
    ended = ledger.store.get(job.id)
    if ended.status != "succeeded":
        sys.exit(f"{job.id} is {ended.status}: {ended.error}")
    (first, _, indexed), (last, _, trained) = seen[0], seen[-1]
    return {
        "dataset_images": manifest.num_samples, "dataset_shards": len(manifest.shards), "steps": last - first + 1,
        "cache_bytes": settings.cache_bytes, "index_cpu_seconds": round(indexed - began, 1),
        "cpu_seconds": round(trained - indexed, 1), "mib_before": before,
        "mib_at_step": {step: resident for step, resident, _ in seen if step == 1 or step % 25 == 0},
    }  # fmt: skip


def elsewhere(settings: Settings, *arguments: str) -> dict[str, Any]:
    """The figures of a part in a process of its own, with the peak of its resident memory."""
    given = {f"DEARKD_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_unset=True).items()}
    done = subprocess.run([sys.executable, __file__, *arguments], env=os.environ | given, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True, help="what `million.py --keep` left of one size")
    parser.add_argument("--images", type=int, default=16, help="of each of the two shards")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--batch-size", type=int, help="by default half a shard")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=("synthesise", "train"), help="only this one")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.keep.absolute()
    torch.set_num_threads(1)
    if options.here:
        settings = Settings()
        if options.part == "synthesise":
            found = synthesise(settings, folder, options.images, options.iterations, options.batch_size)
        else:
            found = train(settings, json.loads((folder / "made.json").read_text())["dataset"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(found | {"mib_peak": round(peak / 1024)}))
        return
    report = {}
    with embedded_redis(folder) as url:
        # Less than the rehearsal's shards, so that they pass.
        settings = Settings(
            redis_url=url, storage_url=f"file://{folder}/storage", cache_dir=folder / "cache", cache_bytes=2**28,
            drain_seconds=86400,
        )  # fmt: skip
        for part in ("synthesise", "train"):
            if options.part in (None, part):
                small = ("--images", str(options.images), "--iterations", str(options.iterations))
                small += ("--batch-size", str(options.batch_size)) if options.batch_size else ()
                report[part] = elsewhere(settings, "--here", "--part", part, "--keep", str(folder), *small)
    print(json.dumps(report, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
