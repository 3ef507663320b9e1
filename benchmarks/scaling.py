"""One worker against two of one thread each, at the same job: how much faster two are.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

Two real synth workers share a Redis and a folder. The same job is made again and again, in turn with `parallelism` 1
and 2, after one that both have warmed up with; its time is from its start to its end by its record, manifest included.
Where a core is busy with other things two workers are no faster: beside the time stands the CPU time of the workers,
which that changes less. Where two take as much of it as one, they share all but what only one of them can do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from dearkd.data.manifests import datasets
from dearkd.identifiers import new_id
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import dataset_of
from dearkd.local.embedded_redis import embedded_redis
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.storage.catalog import Teacher, describe_file, teachers
from dearkd.work.worker import open_ledger

TEACHER = TeacherSpec(
    name="untrained", architecture="resnet10t", num_classes=10, in_chans=1, image_size=32, mean=[0.5], std=[0.5]
)
WORKER = "import sys; from dearkd.work.worker import main; sys.exit(main('synth'))"


def store_teacher(ledger: Ledger, folder: Path) -> str:
    """The id of a teacher that has learnt nothing: how long its images take does not depend on that."""
    # Here, since the processes of `fleet.py` load this module too, and need no torch.
    from safetensors.torch import save_file

    from dearkd.vision.teachers import build_teacher

    weights, storage = folder / "weights.safetensors", ledger.store.storage
    save_file(build_teacher(TEACHER).state_dict(), weights)
    stored = describe_file(weights)
    found: dict[str, Any] = {"sha256": stored.sha256, "bytes": stored.bytes, "parameters": 1, "batch_norm_layers": 1}
    teacher = Teacher(id=new_id("tch"), created_at=datetime.now(UTC), **TEACHER.model_dump(), **found)
    storage.put(teachers(storage).key(teacher.id, "weights.safetensors"), weights)
    teachers(storage).create(teacher)
    return teacher.id


def variables(settings: Settings) -> dict[str, str]:
    """The environment of a process with these settings."""
    return {f"DEARKD_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_unset=True).items()}


class Bench:
    """Two workers that wait for jobs."""

    def __init__(self, ledger: Ledger, teacher: str, workers: list[subprocess.Popen[bytes]], shards: int) -> None:
        self._ledger, self._teacher, self._shards = ledger, teacher, shards
        self._workers = [psutil.Process(worker.pid) for worker in workers]

    def job(self, parallelism: int, iterations: int) -> dict[str, Any]:
        """Make a dataset: seconds, CPU seconds of the workers, and the hashes of its shards."""
        posted = {
            "teacher": self._teacher,
            "images_per_class": 2 * self._shards,
            "batch_size": 20,
            "shard_samples": 20,
            "phases": [{"resolution": 32, "iterations": iterations}],
            "min_teacher_accuracy": 0,
            "parallelism": parallelism,
        }
        spec = SynthesisSpec.resolve(posted, TEACHER)
        before = self._cpu_seconds()
        job = self._ledger.store.create_synthesis(spec, images=spec.num_samples).id
        while not (ended := self._ledger.store.get(job)).terminal:
            time.sleep(0.2)
        assert ended.status == "succeeded", ended.error
        assert ended.started_at is not None
        assert ended.finished_at is not None
        time.sleep(3)  # until the horses have ended: their CPU time is then their parents'
        manifest = datasets(self._ledger.store.storage).get(dataset_of(job))
        return {
            "seconds": (ended.finished_at - ended.started_at).total_seconds(),
            "cpu_seconds": self._cpu_seconds() - before,
            "shards": [shard.sha256 for shard in manifest.shards],
        }

    def _cpu_seconds(self) -> float:
        family = [one for head in self._workers for one in (head, *head.children(recursive=True))]
        return sum(sum(one.cpu_times()[:4]) for one in family)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        redis = stack.enter_context(embedded_redis(folder / "redis"))
        settings = Settings(redis_url=redis, storage_url=f"file://{folder}/storage", cache_dir=folder / "cache")
        ledger = open_ledger(settings)
        teacher = store_teacher(ledger, folder)
        environment = os.environ | variables(settings) | {"DEARKD_TORCH_THREADS": "1"}
        workers = []
        for number in range(2):
            log = stack.enter_context((folder / f"worker-{number}.log").open("wb"))
            worker = subprocess.Popen([sys.executable, "-c", WORKER], env=environment, stdout=log, stderr=log)
            stack.callback(worker.wait)
            stack.callback(worker.terminate)
            workers.append(worker)
        bench = Bench(ledger, teacher, workers, options.shards)
        bench.job(2, options.iterations)
        load = os.getloadavg()
        runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for parallelism, made in runs.items():
                made.append(bench.job(parallelism, options.iterations))
        load_after = os.getloadavg()
    equal = len({tuple(run["shards"]) for made in runs.values() for run in made}) == 1
    one, two = runs[1], runs[2]
    return {
        "cores": os.cpu_count(),
        "load": load,
        "load_after": load_after,
        "seconds": {count: [round(run["seconds"], 1) for run in made] for count, made in runs.items()},
        "cpu_seconds": {count: [round(run["cpu_seconds"], 1) for run in made] for count, made in runs.items()},
        "speedup": round(statistics.median(a["seconds"] / b["seconds"] for a, b in zip(one, two, strict=True)), 2),
        "cpu_ratio": round(
            statistics.median(b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(one, two, strict=True)), 2
        ),
        "byte_identical": equal,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dearkd-scaling-") as folder:
        report = measure(Path(folder), options)
    print(json.dumps(report, indent=2))
    return 0 if report["byte_identical"] and report["speedup"] >= 1.6 else 1


if __name__ == "__main__":
    sys.exit(main())
