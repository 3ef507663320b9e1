"""A million images in rehearsal: what a dataset of thousands of shards costs whoever reads it, in time and memory.

    python benchmarks/million.py --images 100000 1000000 --json
    python benchmarks/million.py --images 100000 --storage-url s3://bucket/rehearsal

A synthesis job of 1,000 classes in shards of 500 images runs through the worker's own service: claims, tar,
verification, publication, strips, maps, quality, the last unit, the manifest. Only the inversion is left out: images
are two thousand files of 32 px that come again and again. Each part is then measured in a process of its own, whose
peak of resident memory is its own: the manifest, lists, tables, the index of a run and its windows, gc; and then the
API's routes. `growth` is the time, and the memory above the imports, of the largest size over those of the smallest,
divided by what the images grew: above 1 it is more than linear. The data are deleted at the end.
"""

import argparse
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
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from api_load import running
from PIL import Image

from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.data.shard_files import Shard
from dearkd.identifiers import new_id
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
from dearkd_synth.quality import merge_quality
from dearkd_synth.service import job as synthesis
from dearkd_synth.service.card import dataset_card
from dearkd_synth.synthesised import SynthesisedBatch, SynthesisedShard
from dearkd_trainer.data.loader import EpochBatches

CLASSES, SHARD, SIDE, FILES, FEATURES = 1000, 500, 32, 2000, 64
TEACHER = TeacherSpec(
    name="rehearsal", architecture="resnet50", num_classes=CLASSES, in_chans=3, image_size=SIDE,
    mean=[0.5] * 3, std=[0.25] * 3, class_names=[f"class {index}" for index in range(CLASSES)],
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

    def _synthesise(self, attempt: Attempt, spec: SynthesisSpec, teacher: Teacher, index: int) -> SynthesisedShard:
        attempt.check()
        samples = shard_samples(spec, index)
        batches = [self._batch(spec, part, part.start - samples.start) for part in shard_batches(spec, index)]
        return SynthesisedShard(index=index, samples=samples, batches=batches)

    def _batch(self, spec: SynthesisSpec, part: range, start: int) -> SynthesisedBatch:
        labels = torch.tensor([sample_label(spec, sample) for sample in part])
        rows, count = slice(start, start + len(part)), len(part)
        return SynthesisedBatch(
            images=self._pixels[rows],
            labels=labels,
            predicted=labels,
            confidence=torch.full((count,), 0.9),
            margin=self._features[rows, 0].abs(),
            features=self._features[rows],
            logits=torch.zeros(1, 1).expand(count, CLASSES),
            batch_norm_distance=1.0,
            class_batch_norm_distance=dict.fromkeys(labels.unique().tolist(), 1.0),
            first_layer_variance=1.0,
            losses={"total": 1.0},
            files=[self._files[int(number)] for number in self._chance.integers(0, FILES, count)],
        )


def made(images: int, settings: Settings) -> dict[str, Any]:
    """Make a dataset of so many images; its id, and what the worker took."""
    ledger = open_ledger(settings)
    teacher = Teacher(
        id=new_id("tch"), created_at=datetime.now(UTC), **TEACHER.model_dump(),
        sha256="0" * 64, bytes=0, parameters=1, batch_norm_layers=53,
    )  # fmt: skip
    teachers(ledger.store.storage).create(teacher)
    posted = {"teacher": teacher.id, "images_per_class": images // CLASSES, "shard_samples": SHARD}
    spec = SynthesisSpec.resolve({**posted, "image_format": "jpeg", "min_teacher_accuracy": 0}, TEACHER)
    job = ledger.store.create_synthesis(spec, images=spec.num_samples)
    ends: list[float] = []
    finish = synthesis.finish

    def timed(*arguments: Any) -> None:
        began = time.perf_counter()
        finish(*arguments)
        ends.append(time.perf_counter() - began)

    synthesis.finish = timed
    began = time.perf_counter()
    with Rehearsal() as worker:
        drain("synthesis", worker.perform, settings)
    ended = ledger.store.get(job.id)
    if ended.status != "succeeded":
        sys.exit(f"{job.id} is {ended.status}: {ended.error}")
    seconds = time.perf_counter() - began
    return {
        "dataset": dataset_of(job.id), "shards": spec.num_shards, "seconds": seconds, "finish_seconds": ends[-1],
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
        """What the job's last unit makes of the shards' figures, which are in its notes."""
        dataset = self.dataset()
        notes = (stored.key for stored in self.storage.objects(f"jobs/{dataset.job}/shards"))
        shards = [Shard.model_validate_json(self.storage.read(key)) for key in notes if key.endswith(".json")]
        quality = merge_quality([shard.quality for shard in shards if shard.quality is not None])
        card = dataset_card(dataset, teachers(self.storage).get(str(dataset.teacher)))
        return {"classes": len(quality["classes"]), "card_bytes": len(card)}

    def gc(self) -> dict[str, Any]:
        found = Collector(self.storage, retention_seconds=0, now=datetime.now(UTC)).find()
        sizes = [garbage.bytes for garbage in found]
        return {"garbage": len(sizes), "bytes": sum(sizes)}

    def index(self) -> dict[str, Any]:
        data = self._shards()
        train, held = split(data.labels, fraction=1.0, holdout=0.01, seed=0)
        return {"trained": len(train), "held": len(held), "fingerprint": data.fingerprint()}

    def windows(self) -> dict[str, Any]:
        """An epoch's order, and the first thousand batches with their shards held, as a run reads them."""
        data = self._shards()
        batches = EpochBatches(
            np.arange(len(data)), 256, seed=0, epochs=range(2), shards=data.shards, window=16
        )  # fmt: skip
        steps = sum(1 for _ in islice(batches.samples(), len(batches) // 2))
        began = time.perf_counter()
        held = data.hold(islice(batches.samples(), 50), max_shards=32)
        for batch, _ in zip(islice(batches.samples(), 50), held, strict=False):
            for number in batch[:16]:
                data[int(number)]
        held.close()
        return {"steps": steps, "fifty_batches_seconds": time.perf_counter() - began}

    def _shards(self) -> StoredShards:
        return StoredShards(
            self.storage, self.dataset(),
            lambda: FileCache(self.settings.cache_dir, self.settings.cache_bytes), num_classes=CLASSES, in_chans=3,
        )  # fmt: skip


PARTS = ("manifest", "listing", "page", "tables", "gc", "index", "windows")


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
    """Seconds, bytes and the API's resident memory afterwards, of each GET; each is asked for three times."""
    here, files = f"/datasets/{identifier}", f"/v1/datasets/{identifier}/files"
    asked = {
        "list": "/v1/datasets", "get": f"/v1{here}", "_info.json": f"{files}/_info.json",
        "dataset.json": f"{files}/dataset.json", "last shard": None, "list's page": "/datasets", "page": here,
        "page, class 500": f"{here}?class=500", "last page": f"{here}?page=1000000", "front": "/",
    }  # fmt: skip
    found: dict[str, Any] = {}
    with api(settings, folder) as (client, process):
        for name, path in asked.items():
            if path is None:
                last = client.get(f"{files}/_info.json").json()["splits"]["train"]["filenames"][-1]
                path = f"{files}/{last}"
            seconds = []
            for _ in range(3):
                began = time.perf_counter()
                answer = client.get(path, follow_redirects=True)
                seconds.append(time.perf_counter() - began)
            found[name] = {
                "status": answer.status_code, "seconds": round(min(seconds), 3), "bytes": len(answer.content),
                "rss_mib": round(process.memory_info().rss / 2**20),
            }  # fmt: skip
    return found


def one_part(name: str, identifier: str, settings: Settings) -> dict[str, Any]:
    """A part's figures, its seconds, and the peak of memory above what the imports had taken."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parts = Parts(identifier, settings)
    part: Callable[[], dict[str, Any]] = getattr(parts, name)
    began = time.perf_counter()
    found = part()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 3), "mib": round((peak - before) / 1024), **found}


def elsewhere(settings: Settings, *arguments: str) -> dict[str, Any]:
    """The figures of this script in a process of its own."""
    given = {f"DEARKD_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_unset=True).items()}
    done = subprocess.run([sys.executable, __file__, *arguments], env=os.environ | given, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(images: int, folder: Path, storage_url: str | None) -> dict[str, Any]:
    folder.mkdir()
    with embedded_redis(folder) as url:
        settings = Settings(
            redis_url=url, storage_url=storage_url or f"file://{folder}/storage", cache_dir=folder / "cache",
            cache_bytes=2**30,
        )  # fmt: skip
        report: dict[str, Any] = {"images": images, "made": elsewhere(settings, "--make", str(images))}
        print(report, file=sys.stderr)
        identifier = report["made"]["dataset"]
        for name in PARTS:
            report[name] = elsewhere(settings, "--part", name, identifier)
            print(name, report[name], file=sys.stderr)
        report["api"] = routes(identifier, settings, folder)
    return report


def growth(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """How each part grew, over how the images did."""
    first, last = reports[0], reports[-1]
    times = last["images"] / first["images"]
    return {
        name: {unit: round(last[name][unit] / max(first[name][unit], least) / times, 2)
               for unit, least in (("seconds", 0.01), ("mib", 5))}
        for name in ("made", *PARTS) if "mib" in last[name]
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--storage-url", help="of an empty storage for the smallest size; by default a folder")
    parser.add_argument("--folder", type=Path, help="where data lie meanwhile: about 4 GB for a million")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.make:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = made(options.make, Settings())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(found | {"mib": round((peak - before) / 1024)}))
        return
    if options.part:
        print(json.dumps(one_part(options.part[0], options.part[1], Settings())))
        return
    reports = []
    for images in sorted(options.images):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            reports.append(measured(images, Path(folder) / "data", options.storage_url))
    print(json.dumps({"reports": reports, "growth": growth(reports)}, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
