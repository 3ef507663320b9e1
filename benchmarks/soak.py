"""Many small jobs of both kinds through workers that are killed at random; at the end nothing may be lost.

    python benchmarks/soak.py --jobs 200 --json
    PYTHONPATH=. python benchmarks/soak.py --s3 swift --jobs 80 --json

Half of the jobs are syntheses, half are training runs that wait for them. Two synth workers and one trainer worker run
under `dearkd up`'s process tree; every few seconds a horse, its rq worker, both, or a supervisor with all below it gets
a SIGKILL. It exits 1, and says why, unless every job ended (succeeded, or failed with a stated cause), storage holds
exactly what the manifests name, and neither a lease nor a process is left. It ends by itself: after `--minutes` the
killing stops, and after half as much again the waiting does.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from soak_accounts import Report, account_for_jobs, compare_storage, look_for_leases, redone

from dearkd.client import Client
from dearkd.errors import DearKDError
from dearkd.identifiers import new_id
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import TERMINAL
from dearkd.local.parts import PARTS, Part
from dearkd.local.up import UpTree
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.vision.teachers import build_teacher
from dearkd.work.worker import open_ledger

MARK = "DEARKD_SOAK_MARK"
S3 = ("swift", "seaweedfs")
"""The servers of the tests that `--s3` starts."""
TEACHER = TeacherSpec(
    name="untrained", architecture="resnet10t", num_classes=4, in_chans=1, image_size=32, mean=[0.5], std=[0.5]
)
SYNTHESIS: dict[str, Any] = {
    "images_per_class": 4,
    "batch_size": 8,
    "shard_samples": 8,
    "parallelism": 2,
    "phases": [{"resolution": 8, "iterations": 2}],
    "min_teacher_accuracy": 0,
}
"""Two shards of 8 images, and the manifest: three units; of an untrained teacher, who recognises nothing."""
TRAINING: dict[str, Any] = {
    "student": {"embed_dim": 16, "depth": 1, "num_heads": 1, "mhca_blocks": 1},
    "stage_one": {"epochs": 1},
    "stage_two": {"epochs": 1},
    "batch_size": 8,
    "checkpoint_every": 1,
}
WORKERS = 3


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


@contextmanager
def storage(s3: str | None, folder: Path) -> Iterator[dict[str, str]]:
    """The environment that names the storage: none, or a bucket of a server that lasts as long as the context."""
    if s3 is None:
        yield {}
        return
    # Not for who soaks files: these want the root of the repository in PYTHONPATH.
    from tests.support.s3 import ACCESS_KEY, SECRET_KEY, swift
    from tests.support.seaweedfs import seaweedfs

    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    os.environ |= keys  # this program looks into the bucket too
    (folder / "s3").mkdir()
    with (swift if s3 == "swift" else seaweedfs)(folder / "s3") as server:
        yield keys | {"DEARKD_STORAGE_URL": server.url("soak"), "DEARKD_S3_ENDPOINT": server.endpoint}


def soak(
    folder: Path,
    *,
    jobs: int,
    seed: int,
    kill_every: tuple[float, float],
    minutes: float,
    stored_in: dict[str, str],
) -> dict[str, Any]:
    mark = new_id("tmp")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DEARKD_")}
    environment = clean | stored_in | {"DEARKD_TORCH_THREADS": "1", MARK: mark}
    second = Part("synth-2", next(part.command for part in PARTS if part.name == "synth"), queues=("synth",))
    found = Report()
    killer = Killer(seed, kill_every, mark)
    tree = UpTree(folder / "up", 0, parts=(*PARTS, second), environment=environment, say=lambda line: None)
    began = time.monotonic()
    try:
        with tree, Client(tree.url) as client:
            settings = Settings(
                redis_url=tree._environment["DEARKD_REDIS_URL"],
                storage_url=tree.storage_url,
                s3_endpoint=stored_in.get("DEARKD_S3_ENDPOINT"),
            )
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
        "storage": stored_in.get("DEARKD_STORAGE_URL", "files"),
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
    parser.add_argument("--s3", choices=S3, help="in a bucket of this server, which is started, rather than in files")
    parser.add_argument("--minutes", type=float, default=40.0, help="after which the killing stops")
    parser.add_argument("--keep", type=Path, help="a folder for everything, rather than one that is removed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dearkd-soak-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with storage(options.s3, folder) as stored_in:
                report = soak(
                    folder,
                    jobs=options.jobs,
                    seed=options.seed,
                    kill_every=tuple(options.kill_every),
                    minutes=options.minutes,
                    stored_in=stored_in,
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
