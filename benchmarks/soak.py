"""Many small jobs of both kinds through workers that are killed at random; at the end nothing may be lost.

    python benchmarks/soak.py --jobs 200 --json

Half of the jobs are syntheses, half are training runs that wait for them. Two synth workers and one trainer worker run
under `dearkd up`'s process tree; every few seconds a horse, its rq worker, both, or a supervisor with all below it gets
a SIGKILL. It exits 1, and says why, unless every job ended (succeeded, or failed with a stated cause), storage holds
exactly what the manifests name, and neither a lease nor a process is left. It ends by itself: after `--minutes` the
killing stops, and after half as much again the waiting does.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from dearkd.client import Client
from dearkd.data.manifests import datasets
from dearkd.errors import DearKDError, NotFound
from dearkd.identifiers import new_id
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import TERMINAL, Job, dataset_of, model_of
from dearkd.local.garbage import ABANDONED_SECONDS, Collector
from dearkd.local.parts import PARTS, Part
from dearkd.local.up import UpTree
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.storage.catalog import models
from dearkd.storage.objects import Storage
from dearkd.vision.teachers import build_teacher
from dearkd.work.worker import open_ledger

MARK = "DEARKD_SOAK_MARK"
TEACHER = TeacherSpec(
    name="untrained", architecture="resnet10t", num_classes=4, in_chans=1, image_size=32, mean=[0.5], std=[0.5]
)
SYNTHESIS: dict[str, Any] = {
    "images_per_class": 4,
    "batch_size": 8,
    "shard_samples": 8,
    "parallelism": 2,
    "phases": [{"resolution": 8, "iterations": 2}],
}
"""Two shards of 8 images, and the manifest: three units."""
TRAINING: dict[str, Any] = {
    "student": {"embed_dim": 16, "depth": 1, "num_heads": 1, "mhca_blocks": 1},
    "stage_one": {"epochs": 1},
    "stage_two": {"epochs": 1},
    "batch_size": 8,
    "checkpoint_every": 1,
}
WORKERS = 3
BESIDE = {
    "datasets": {"dataset.json", "_info.json", "preview.png", "timelapse.webp", "README.md"},
    "models": {"model.json"},
}
"""What lies beside the files that a manifest names."""


@dataclass
class Report:
    """What went wrong; nothing, if all is well."""

    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)


class Killer:
    """Kills at random until it is told to stop. The seed decides whom and when, the machine what they were doing."""

    def __init__(self, seed: int, seconds: tuple[float, float], mark: str) -> None:
        self.kills: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._seconds = seconds
        self._mark = mark
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")
        self._last_supervisor = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._random.uniform(*self._seconds)):
            found = at_work(self._mark)
            # As if one of all workers were drawn, and spared if idle: else the last jobs would be hit by every blow.
            drawn = self._random.randrange(WORKERS)
            if drawn >= len(found):
                continue
            supervisor, worker, horse = found[drawn]
            who = self._random.choices(["horse", "worker", "both", "part"], [4, 3, 2, 1])[0]
            # `up` gives up on a part that dies five times in a minute: that is its promise, not what is tried here.
            if who == "part" and time.monotonic() - self._last_supervisor < 20:
                who = "both"
            if who == "part":
                self._last_supervisor = time.monotonic()
            below = {"horse": [horse], "worker": [worker], "both": [worker, horse]}
            for pid in below.get(who, [supervisor, worker, horse]):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.kills[who] += 1


def ours(mark: str) -> list[psutil.Process]:
    """Every live process that this soak started, directly or not."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def orphans(mark: str) -> list[psutil.Process]:
    """Those that nobody answers for any more: they would stay until the whole tree ends."""
    everyone = ours(mark)
    pids = {process.pid for process in everyone} | {os.getpid()}
    found = []
    for process in everyone:
        with suppress(psutil.Error):
            if process.ppid() not in pids:
                found.append(process)
    return found


def at_work(mark: str) -> list[tuple[int, int, int]]:
    """Supervisor, rq worker and horse of each unit at work: a horse is a fork of an rq worker, which was spawned."""
    found = []
    for process in ours(mark):
        with suppress(psutil.Error):
            worker = process.parent()
            supervisor = worker.parent() if worker is not None else None
            if worker is None or supervisor is None:
                continue
            if _spawned(worker) and not _spawned(supervisor):
                found.append((supervisor.pid, worker.pid, process.pid))
    return found


def _spawned(process: psutil.Process) -> bool:
    return "--multiprocessing-fork" in process.cmdline()


def make_teacher(folder: Path) -> Path:
    torch.manual_seed(0)
    model = build_teacher(TEACHER)
    path = folder / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


def post(client: Client, jobs: int, teacher: str) -> list[str]:
    """Alternately a synthesis and a run that waits for it, of all priorities."""
    accepted: list[str] = []
    for number in range(jobs):
        common = {"seed": number, "priority": ("normal", "high", "low")[number // 2 % 3]}
        if number % 2 == 0:
            accepted.append(client.create_synthesis_job({"teacher": teacher, **SYNTHESIS, **common}).id)
        else:
            accepted.append(client.create_training_run({"dataset": accepted[-1], **TRAINING, **common}).id)
    return accepted


def wait(ledger: Ledger, accepted: list[str], killer: Killer, minutes: float, tree: UpTree) -> None:
    """Until all have ended, or the time is up."""
    began = time.monotonic()
    said = 0.0
    while True:
        left = [identifier for identifier in accepted if ledger.store.get(identifier).status not in TERMINAL]
        passed = time.monotonic() - began
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print(
                f"{passed:5.0f} s: {len(left)} of {len(accepted)} not ended, kills {dict(killer.kills)}",
                file=sys.stderr,
            )
        if not left or passed > minutes * 90 or tree.failure is not None:
            return
        if passed > minutes * 60:
            killer.stop()
        time.sleep(1.0)


def account_for_jobs(ledger: Ledger, accepted: list[str], found: Report) -> tuple[list[Job], Counter[str]]:
    """Every accepted job has one end, with a cause where it failed, and storage says the same."""
    jobs: list[Job] = []
    outcomes: Counter[str] = Counter()
    storage = ledger.store.storage
    for identifier in accepted:
        try:
            job = ledger.store.get(identifier)
        except NotFound:
            found.wrong.append(f"{identifier} is lost")
            continue
        jobs.append(job)
        outcomes[job.status if job.error is None else f"{job.status}: {job.error.code}"] += 1
        found.expect(job.terminal, f"{identifier} has not ended: it is {job.status}")
        if not job.terminal:
            continue
        found.expect(job.status != "canceled", f"{identifier} was canceled by nobody")
        found.expect((job.status == "failed") == (job.error is not None), f"{identifier} is {job.status}: {job.error}")
        if job.error is not None:
            stated = job.error.code in ("worker_died", "dataset_failed") and bool(job.error.message)
            found.expect(stated, f"{identifier} failed for another reason: {job.error}")
        final = f"jobs/{identifier}/final.json"
        found.expect(storage.exists(final), f"{identifier} has no final.json")
        if storage.exists(final):
            said = Job.model_validate_json(storage.read(final)).status
            found.expect(said == job.status, f"{identifier} is {job.status}, its final.json says {said}")
        made = _made(job)
        catalog = datasets(storage) if job.kind == "synthesis" else models(storage)
        there = catalog.exists(made)
        found.expect(
            there == (job.status == "succeeded"), f"{identifier} {job.status}: the manifest of {made} is {there}"
        )
    return jobs, outcomes


def _made(job: Job) -> str:
    return dataset_of(job.id) if job.kind == "synthesis" else model_of(job.id)


def compare_storage(storage: Storage, jobs: list[Job], found: Report) -> int:
    """After the clean-up, exactly what the manifests name, byte for byte; how many objects went."""
    now = datetime.now(UTC) + timedelta(seconds=2 * ABANDONED_SECONDS)
    collector = Collector(storage, retention_seconds=0, now=now)
    removed = sum(collector.remove(garbage) for garbage in list(collector.find()))
    for root, kind in (("datasets", "synthesis"), ("models", "training")):
        expected: dict[str, tuple[int, str] | None] = {}
        for job in jobs:
            if job.kind != kind or job.status != "succeeded":
                continue
            made = _made(job)
            expected |= {f"{root}/{made}/{name}": None for name in BESIDE[root]}
            named: Any = datasets(storage).get(made).shards if root == "datasets" else models(storage).get(made).files
            expected |= {f"{root}/{made}/{file.name}": (file.bytes, file.sha256) for file in named}
        stored = {one.key for one in storage.objects(root)}
        for key in sorted(stored - expected.keys()):
            found.wrong.append(f"{key} is in storage, but no manifest names it")
        for key in sorted(expected.keys() - stored):
            found.wrong.append(f"{key} is not in storage")
        for key, facts in expected.items():
            if facts is not None and key in stored:
                data = storage.read(key)
                same = (len(data), hashlib.sha256(data).hexdigest()) == facts
                found.expect(same, f"{key} is not what its manifest says")
    for root in ("tmp",):
        found.expect(not list(storage.objects(root)), f"{root}/ is not empty")
    return removed


def look_for_leases(ledger: Ledger, found: Report) -> None:
    redis = ledger.redis
    for key in ("dearkd:leases", "dearkd:open:synthesis", "dearkd:open:training"):
        left: Any = redis.zrange(key, 0, -1)
        found.expect(not left, f"{key} still holds {left}")
    unsettled: Any = redis.smembers("dearkd:unsettled")
    found.expect(not unsettled, f"unsettled: {unsettled}")


def redone(ledger: Ledger, jobs: list[Job]) -> tuple[int, int, Counter[str]]:
    """Attempts that began, units there were, and how often each sort of end of an attempt was noted."""
    begun = 0
    causes: Counter[str] = Counter()
    for job in jobs:
        for line in ledger.log.read(job.id).splitlines():
            begun += " begins on " in line
            if " lost its worker: " in line:
                causes["fell silent" if "fell silent" in line else "seen by who watched it"] += 1
            causes["came back too late"] += "published nothing more" in line
            causes["adopted"] += "verified and adopted" in line
    units = sum(3 if job.kind == "synthesis" else 1 for job in jobs if job.status == "succeeded")
    return begun, units, causes


def soak(folder: Path, *, jobs: int, seed: int, kill_every: tuple[float, float], minutes: float) -> dict[str, Any]:
    mark = new_id("tmp")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DEARKD_")}
    environment = clean | {"DEARKD_TORCH_THREADS": "1", MARK: mark}
    second = Part("synth-2", next(part.command for part in PARTS if part.name == "synth"), queues=("synth",))
    found = Report()
    killer = Killer(seed, kill_every, mark)
    tree = UpTree(folder / "up", 0, parts=(*PARTS, second), environment=environment, say=lambda line: None)
    began = time.monotonic()
    try:
        with tree, Client(tree.url) as client:
            environment_of_parts = tree._environment
            settings = Settings(redis_url=environment_of_parts["DEARKD_REDIS_URL"], storage_url=tree.storage_url)
            ledger = open_ledger(settings)
            teacher = client.create_teacher(TEACHER, make_teacher(folder)).id
            accepted = post(client, jobs, teacher)
            started = time.monotonic()
            killer.start()
            try:
                wait(ledger, accepted, killer, minutes, tree)
            finally:
                killer.stop()
            ran = time.monotonic() - started
            found.expect(tree.failure is None, f"the tree gave up: {tree.failure}")
            ended, outcomes = account_for_jobs(ledger, accepted, found)
            deadline = time.monotonic() + 60
            while (at_work(mark) or orphans(mark)) and time.monotonic() < deadline:
                time.sleep(0.5)
            found.expect(not orphans(mark), f"processes that nobody answers for: {orphans(mark)}")
            look_for_leases(ledger, found)
            begun, units, causes = redone(ledger, ended)
            removed = compare_storage(ledger.store.storage, ended, found)
    finally:
        killer.stop()
    left = ours(mark)
    found.expect(not left, f"processes are left: {left}")
    scratch = [path.name for path in (folder / "up" / "cache").glob("scratch/*")]
    return {
        "jobs": jobs,
        "seed": seed,
        "seconds": round(ran, 1),
        "seconds_with_start": round(time.monotonic() - began, 1),
        "kill_every_seconds": list(kill_every),
        "kills": dict(killer.kills),
        "outcomes": dict(outcomes),
        "attempts_begun": begun,
        "units_of_succeeded_jobs": units,
        "notes": dict(causes),
        "garbage_objects_removed": removed,
        "scratch_folders_left": len(scratch),
        "wrong": found.wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kill-every", type=float, nargs=2, default=(4.0, 10.0), metavar=("FROM", "TO"), help="seconds"
    )
    parser.add_argument("--minutes", type=float, default=40.0, help="after which the killing stops")
    parser.add_argument("--keep", type=Path, help="a folder for everything, rather than one that is removed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dearkd-soak-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            report = soak(
                folder,
                jobs=options.jobs,
                seed=options.seed,
                kill_every=tuple(options.kill_every),
                minutes=options.minutes,
            )
        except DearKDError as error:
            print(f"the soak could not run: {error.message}", file=sys.stderr)
            return 2
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            print(f"{name:26} {value}")
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
