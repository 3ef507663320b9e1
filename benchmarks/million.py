"""A million images in rehearsal: what a dataset of thousands of shards costs whoever reads it, in time and memory.

    python benchmarks/million.py --images 100000 1000000 --json
    python benchmarks/million.py --images 200000 --classes 100 1000
    python benchmarks/million.py --images 100000 --storage-url s3://bucket/rehearsal

A synthesis job (of 1,000 classes) in shards of 500 images runs through the worker's own service: claims, tar,
publication, strips, maps, quality, the last unit, the manifest. Left out are the inversion, for images are two thousand
files of 32 px that come again and again, and the verification of all but the first shards. Each part is then measured
in a process of its own, whose peak of resident memory is its own: the manifest, lists, tables, pictures, the images of
an adaptive student, gc, the index of a run and its windows; and then the API's routes. `growth` is the CPU time (where
others use the machine the wall says little), and the memory above the imports, of the largest size over those of the
smallest, divided by what the images grew, or the classes where these differ: above 1 it is more than linear. The data
are deleted at the end, but for `--keep`. `million_true.py` has the parts that compute.
"""

import argparse
import gc
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from api_load import running
from PIL import Image

from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.data.shard_files import Shard
from dearkd.identifiers import new_id, sibling
from dearkd.jobs.model import dataset_of
from dearkd.local.embedded_redis import embedded_redis, free_port
from dearkd.local.garbage import Collector
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.storage.catalog import Teacher, teachers
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision.shards import split
from dearkd.vision.stored_shards import StoredShards
from dearkd.work.attempt import Attempt
from dearkd.work.worker import drain, open_ledger
from dearkd_synth.batches import sample_label, shard_batches, shard_samples
from dearkd_synth.feature_map import feature_map, mapped_shards
from dearkd_synth.quality import merge_quality
from dearkd_synth.service import job as synthesis
from dearkd_synth.service.card import dataset_card
from dearkd_synth.service.pictures import MAX_STRIPS
from dearkd_synth.service.preview import compose_preview
from dearkd_synth.service.student_unit import MAX_BYTES, MAX_IMAGES, stored_images
from dearkd_synth.synthesised import SynthesisedBatch, SynthesisedShard
from dearkd_trainer.data.loader import EpochBatches

SHARD, SIDE, FILES, FEATURES = 500, 32, 2000, 64
VERIFIED = 64
"""The first shards are read once more before they are published, as all are in earnest: that is half of the time."""


def teacher_of(classes: int) -> TeacherSpec:
    return TeacherSpec(
        name="rehearsal", architecture="resnet50", num_classes=classes, in_chans=3, image_size=SIDE,
        mean=[0.5] * 3, std=[0.25] * 3, class_names=[f"class {index}" for index in range(classes)],
    )  # fmt: skip


class Rehearsal(synthesis.ShardMaker):
    """A worker that performs all of a shard's unit but the inversion."""

    def __init__(self) -> None:
        super().__init__()
        self._chance = np.random.default_rng(0)
        self._files = [self._picture() for _ in range(FILES)]
        self._pixels = torch.from_numpy(self._chance.integers(0, 256, (SHARD, 3, SIDE, SIDE), dtype=np.uint8))
        self._features = torch.randn(SHARD, FEATURES, generator=torch.Generator().manual_seed(0))

    def _picture(self) -> bytes:
        coarse = self._chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
        return file.getvalue()

    @staticmethod
    def verify_first(
        path: Path, spec: SynthesisSpec, index: int, check: Callable[..., Any] = synthesis.check_contents
    ) -> None:
        if index < VERIFIED:
            check(path, spec, index)

    def _synthesise(self, attempt: Attempt, spec: SynthesisSpec, teacher: Teacher, index: int) -> SynthesisedShard:
        attempt.check()
        samples = shard_samples(spec, index)
        classes = teacher.num_classes
        batches = [self._batch(spec, part, part.start - samples.start, classes) for part in shard_batches(spec, index)]
        return SynthesisedShard(index=index, samples=samples, batches=batches)

    def _batch(self, spec: SynthesisSpec, part: range, start: int, classes: int) -> SynthesisedBatch:
        labels = torch.tensor([sample_label(spec, sample) for sample in part])
        rows, count = slice(start, start + len(part)), len(part)
        return SynthesisedBatch(
            images=self._pixels[rows],
            labels=labels,
            predicted=labels,
            confidence=torch.full((count,), 0.9),
            margin=self._features[rows, 0].abs(),
            features=self._features[rows],
            logits=torch.zeros(1, 1).expand(count, classes),
            batch_norm_distance=1.0,
            class_batch_norm_distance=dict.fromkeys(labels.unique().tolist(), 1.0),
            first_layer_variance=1.0,
            losses={"total": 1.0},
            files=[self._files[int(number)] for number in self._chance.integers(0, FILES, count)],
        )


def made(images: int, classes: int, settings: Settings) -> dict[str, Any]:
    """Make a dataset of so many images and classes; its id, and what the worker took."""
    ledger = open_ledger(settings)
    described = teacher_of(classes)
    teacher = Teacher(
        id=new_id("tch"), created_at=datetime.now(UTC), **described.model_dump(),
        sha256="0" * 64, bytes=0, parameters=1, batch_norm_layers=53,
    )  # fmt: skip
    teachers(ledger.store.storage).create(teacher)
    posted = {"teacher": teacher.id, "images_per_class": images // classes, "shard_samples": SHARD}
    spec = SynthesisSpec.resolve({**posted, "image_format": "jpeg", "min_teacher_accuracy": 0}, described)
    job = ledger.store.create_synthesis(spec, images=spec.num_samples)
    ends: list[float] = []
    finish = synthesis.finish

    def timed(*arguments: Any) -> None:
        began = time.process_time()
        finish(*arguments)
        ends.append(round(time.process_time() - began, 2))

    synthesis.finish, synthesis.check_contents = timed, Rehearsal.verify_first  # type: ignore[assignment]  # these, in place of the service's own
    began, spent = time.perf_counter(), time.process_time()
    with Rehearsal() as worker:
        drain("synthesis", worker.perform, settings)
    ended = ledger.store.get(job.id)
    if ended.status != "succeeded":
        sys.exit(f"{job.id} is {ended.status}: {ended.error}")
    seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    return {
        "dataset": dataset_of(job.id), "shards": spec.num_shards, "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1), "finish_cpu_seconds": ends[-1],
        "redis_bytes": ledger.redis.info("memory")["used_memory"],
    }  # fmt: skip


class Parts:
    """What readers do with a dataset, part by part; each returns figures of its own."""

    def __init__(self, identifier: str, settings: Settings) -> None:
        self.settings, self.identifier = settings, identifier
        self.storage = Storage.open(settings)

    def dataset(self) -> DatasetManifest:
        return datasets(self.storage).get(self.identifier)

    def manifest(self) -> dict[str, Any]:
        size = self.storage.size(f"datasets/{self.identifier}/dataset.json")
        return {"bytes": size, "shards": len(self.dataset().shards)}

    def listing(self) -> dict[str, Any]:
        found = list(self.storage.objects(f"datasets/{self.identifier}"))
        return {"objects": len(found), "bytes": sum(stored.size for stored in found)}

    def page(self) -> dict[str, Any]:
        found, _ = datasets(self.storage).page(limit=50)
        return {"datasets": len(found)}

    def tables(self) -> dict[str, Any]:
        """What the job's last unit makes of the shards' figures: it has them in Redis, here the notes are read."""
        dataset = self.dataset()
        notes = (stored.key for stored in self.storage.objects(f"jobs/{dataset.job}/shards"))
        shards = [Shard.model_validate_json(self.storage.read(key)) for key in notes if key.endswith(".json")]
        spent = time.process_time()
        quality = merge_quality([shard.quality for shard in shards if shard.quality is not None])
        card = dataset_card(dataset, teachers(self.storage).get(str(dataset.teacher)))
        merged = round(time.process_time() - spent, 3)
        return {"classes": len(quality["classes"]), "card_bytes": len(card), "merged_cpu_seconds": merged}

    def gc(self) -> dict[str, Any]:
        found = Collector(self.storage, retention_seconds=0, now=datetime.now(UTC)).find()
        sizes = [garbage.bytes for garbage in found]
        return {"garbage": len(sizes), "bytes": sum(sizes)}

    def pictures(self) -> dict[str, Any]:
        """The preview and the feature map, of what the shards left of either."""
        dataset = self.dataset()
        beside = [self._beside(str(dataset.job), shard) for shard in dataset.shards]
        strips = (
            (self.storage.read(f"{key}.png"), shard)
            for key, shard in zip(beside[:MAX_STRIPS], dataset.shards[:MAX_STRIPS], strict=True)
        )
        classes = len(dataset.class_names)
        grid = compose_preview(
            strips, dataset.class_names, classes=classes, images_per_class=dataset.num_samples // classes
        )
        mapped = [beside[index] for index in mapped_shards(len(beside))]
        found = feature_map([self.storage.read(f"{key}.safetensors") for key in mapped])
        return {"preview_bytes": len(grid or b""), "points": len(found.points) if found else 0}

    def student(self) -> dict[str, Any]:
        """The images that a job's own student learns from, of each tenth shard, as its unit reads them."""
        dataset, teacher = self.dataset(), teachers(self.storage).get(str(self.dataset().teacher))
        payloads = {str(index): shard.model_dump_json().encode() for index, shard in enumerate(dataset.shards)}
        cache = FileCache(self.settings.cache_dir, self.settings.cache_bytes)
        attempt: Any = SimpleNamespace(
            storage=self.storage, cache=cache, check=lambda: None, job=SimpleNamespace(id=dataset.job),
            ledger=SimpleNamespace(payload=lambda _, unit: payloads[unit]),
        )  # fmt: skip
        made = range(0, len(dataset.shards), 10)
        images = stored_images(attempt, teacher, made, max_images=MAX_IMAGES, max_bytes=MAX_BYTES)
        return {"shards": len(made), "images": len(images)}

    def index(self) -> dict[str, Any]:
        train, held = split(self.data.labels, fraction=1.0, holdout=0.01, seed=0)
        return {"trained": len(train), "held": len(held), "fingerprint": self.data.fingerprint()}

    def windows(self) -> dict[str, Any]:
        """The order of two epochs, and the first fifty batches of one with their shards held, as a run reads them."""
        batches = EpochBatches(
            np.arange(len(self.data)), 256, seed=0, epochs=range(2), shards=self.data.shards, window=16
        )  # fmt: skip
        steps = sum(1 for _ in batches.samples())
        held = self.data.hold(islice(batches.samples(), 50), max_shards=32)
        for batch, _ in zip(islice(batches.samples(), 50), held, strict=False):
            for number in batch[:16]:
                self.data[int(number)]
        held.close()
        return {"steps": steps}

    @cached_property
    def data(self) -> StoredShards:
        dataset = self.dataset()
        return StoredShards(
            self.storage, dataset, lambda: FileCache(self.settings.cache_dir, self.settings.cache_bytes),
            num_classes=len(dataset.class_names), in_chans=3,
        )  # fmt: skip

    @staticmethod
    def _beside(job: str, shard: Shard) -> str:
        """The key, but for its suffix, of what a shard's maker left beside the job."""
        return f"jobs/{job}/shards/{shard.name.removesuffix('.tar')}-{shard.sha256[:16]}"


PROCESSES = ("manifest", "listing", "page", "tables", "pictures", "student", "gc", "index,windows")
"""Parts that are measured in one process, one after another, are named together."""
PARTS = tuple(part for parts in PROCESSES for part in parts.split(","))


@contextmanager
def api(settings: Settings, folder: Path) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    port = free_port()
    given = settings.model_copy(update={"port": port})
    given.model_fields_set.add("port")
    with (
        running("-m", "dearkd_api", settings=given, log=folder / "api.log") as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):
        until = time.monotonic() + 60
        while True:
            try:
                client.get("/healthz").raise_for_status()
                break
            except httpx.HTTPError:
                if time.monotonic() > until:
                    sys.exit((folder / "api.log").read_text()[-2000:])
                time.sleep(0.2)
        yield client, psutil.Process(process.pid)


def routes(identifier: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """CPU seconds of the API, bytes, and its resident memory afterwards, of each GET; the least of three times."""
    here, files = f"/datasets/{identifier}", f"/v1/datasets/{identifier}/files"
    job = sibling(identifier, "syn")
    asked = {
        "list": "/v1/datasets", "get": f"/v1{here}", "_info.json": f"{files}/_info.json",
        "dataset.json": f"{files}/dataset.json", "last shard": None, "list's page": "/datasets", "page": here,
        "page, class 50": f"{here}?class=50", "last page": f"{here}?page=1000000", "front": "/",
        "job": f"/v1/synthesis-jobs/{job}", "job's page": f"/jobs/{job}",
    }  # fmt: skip
    found: dict[str, Any] = {}
    with api(settings, folder) as (client, process):
        for name, path in asked.items():
            if path is None:
                last = client.get(f"{files}/_info.json").json()["splits"]["train"]["filenames"][-1]
                path = f"{files}/{last}"
            seconds = []
            for _ in range(3):
                began = sum(process.cpu_times()[:2])
                answer = client.get(path, follow_redirects=True)
                seconds.append(sum(process.cpu_times()[:2]) - began)
            found[name] = {
                "status": answer.status_code, "cpu_seconds": round(min(seconds), 3), "bytes": len(answer.content),
                "rss_mib": round(process.memory_info().rss / 2**20),
            }  # fmt: skip
    return found


def in_process(names: str, identifier: str, settings: Settings) -> dict[str, Any]:
    """The figures of parts, each with CPU seconds, seconds, and the peak of memory above that of the imports."""
    # Or a part that allocates much pays for one look at all that torch has imported: 0.2 s, more than most parts take.
    gc.collect()
    gc.freeze()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parts, found = Parts(identifier, settings), {}
    for name in names.split(","):
        part: Callable[[], dict[str, Any]] = getattr(parts, name)
        began, spent = time.perf_counter(), time.process_time()
        figures = part()
        cpu, seconds = time.process_time() - spent, time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mib = round((peak - before) / 1024)
        found[name] = {"cpu_seconds": round(cpu, 3), "seconds": round(seconds, 3), "mib": mib, **figures}
    return found


def elsewhere(settings: Settings, *arguments: str) -> dict[str, Any]:
    """The figures of this script in a process of its own."""
    given = {f"DEARKD_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_unset=True).items()}
    done = subprocess.run([sys.executable, __file__, *arguments], env=os.environ | given, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(images: int, classes: int, folder: Path, storage_url: str | None) -> dict[str, Any]:
    """The figures of a size; what an earlier run has made in this folder is not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "made.json"
    with embedded_redis(folder) as url:
        settings = Settings(
            redis_url=url, storage_url=storage_url or f"file://{folder}/storage", cache_dir=folder / "cache",
            cache_bytes=2**30, drain_seconds=86400,
        )  # fmt: skip
        if not note.exists():
            note.write_text(json.dumps(elsewhere(settings, "--make", str(images), str(classes))))
        report: dict[str, Any] = {"images": images, "classes": classes, "made": json.loads(note.read_text())}
        print(report, file=sys.stderr)
        identifier = report["made"]["dataset"]
        for names in PROCESSES:
            found = elsewhere(settings, "--part", names, identifier)
            print(found, file=sys.stderr)
            report |= found
        report["api"] = routes(identifier, settings, folder)
    return report


def growth(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """How each part grew, over how the images did, or the classes of equally many images."""
    first, last = reports[0], reports[-1]
    times = last["images"] / first["images"] if last["images"] > first["images"] else last["classes"] / first["classes"]
    return {
        name: {unit: round(last[name][unit] / max(first[name][unit], least) / times, 2)
               for unit, least in (("cpu_seconds", 0.01), ("mib", 5))}
        for name in ("made", *PARTS)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[1000])
    parser.add_argument("--storage-url", help="of an empty storage for the smallest size; by default a folder")
    parser.add_argument("--folder", type=Path, help="where data lie meanwhile: about 4 GB for a million")
    parser.add_argument("--keep", type=Path, help="a folder in which they stay; what lies there is not made again")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.make:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        images, classes = options.make
        found = made(images, classes, Settings())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(found | {"mib": round((peak - before) / 1024)}))
        return
    if options.part:
        print(json.dumps(in_process(options.part[0], options.part[1], Settings())))
        return
    reports = []
    for images, classes in product(sorted(options.images), sorted(options.classes)):
        if options.keep:
            folder = options.keep.absolute() / f"{images}-{classes}"
            reports.append(measured(images, classes, folder, options.storage_url))
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            reports.append(measured(images, classes, Path(name) / "data", options.storage_url))
    print(json.dumps({"reports": reports, "growth": growth(reports)}, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
