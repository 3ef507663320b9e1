"""All of dearkd as real processes, with a Redis that can be killed and a proxy before it."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha1
from pathlib import Path
from typing import Any, cast

import psutil

from dearkd.answers import JobView
from dearkd.client import Client
from dearkd.data.shard_files import Shard
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.scripts import source
from dearkd.local.embedded_redis import EmbeddedRedis
from dearkd.local.up import UpTree
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.storage.objects import Storage
from dearkd.work.worker import open_ledger
from tests.support import services
from tests.support.proxy import FaultProxy
from tests.support.services import eventually

SYNTHESIS: dict[str, Any] = {
    "images_per_class": 4,
    "batch_size": 20,
    "shard_samples": 20,
    "phases": [{"resolution": 8, "iterations": 40}],
    "min_teacher_accuracy": 0,
    "seed": 3,
}
"""Two shards of 20 images: each takes three seconds of a core, and half a second after it began its worker has told how
far it is. So what is to happen in its midst does on a machine that is three times as fast."""
TRAINING: dict[str, Any] = {
    "student": {"patch_size": 8},
    "stage_one": {"epochs": 4},
    "stage_two": {"epochs": 4},
    "batch_size": 16,
    "checkpoint_every": 1,
    "seed": 3,
}

SHORT = {"DEARKD_LEASE_SECONDS": "6", "DEARKD_HEARTBEAT_SECONDS": "0.5", "DEARKD_TORCH_THREADS": "1"}
"""Leases that run out soon, but not when a busy machine lets a process wait; networks are too small for threads."""


class RedisServer:
    """A Redis with an append-only file, which can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.server = EmbeddedRedis(folder)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.server.command, cwd=self.server.directory, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert self.process.stdin is not None
        with self.process.stdin as configuration:
            configuration.write(self.server.configuration)
        self.server.wait_until_ready(lambda: True)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class World:
    """A running tree, its Redis, the proxy between them, and the ways to look at it directly."""

    tree: UpTree
    redis: RedisServer
    proxy: FaultProxy
    client: Client
    settings: Settings
    """Of the tree, but past the proxy."""

    @cached_property
    def ledger(self) -> Ledger:
        return open_ledger(self.settings)

    @cached_property
    def storage(self) -> Storage:
        return Storage.open(self.settings)

    def hold_at(self, transition: str, *, skip: int = 0) -> None:
        """Keep whoever takes this step of the ledger from going on; `proxy.held` says that somebody is there."""
        self.proxy.hold(sha1(source(transition).encode()).hexdigest().encode(), skip=skip)

    def hold_in_shard(self, index: int) -> None:
        """Keep whoever makes this shard from telling how far it is; it computes meanwhile."""
        self.proxy.hold(f'{{"shard": {index}, '.encode())

    def hold_at_row(self, epoch: int) -> None:
        """Keep whoever trains from going on after this epoch: its row is text within the JSON of a step of the ledger.

        What the lease's thread tells of it, once in a while, is no such text, and skips epochs that are short.
        """
        self.proxy.hold(json.dumps(f'"epoch": {epoch}, ')[1:-1].encode())

    def log(self, job: str) -> list[str]:
        return [line.partition(" ")[2] for line in self.ledger.log.read(job).splitlines()]

    def begins(self, job: str) -> list[str]:
        """The units in the order in which attempts at them began."""
        return [line.split()[1] for line in self.log(job) if " begins on " in line]

    def holder(self, job: str) -> "Workers":
        """Who works on a job, by the ledger's book, once somebody does; horses that are just ending do not count."""
        held: list[bytes] = []

        def found() -> bool:
            held[:] = cast("list[bytes]", self.ledger.redis.hvals(f"dearkd:job:{job}:holders"))
            return bool(held)

        eventually(found)
        _, worker, horse = held[0].decode().split("/")
        return Workers(psutil.Process(int(worker)).ppid(), int(worker), int(horse))

    def upload(self, plain: tuple[TeacherSpec, Path]) -> str:
        """The id of a teacher."""
        spec, weights = plain
        identifier: str = self.client.create_teacher(spec, weights).id
        return identifier

    def synthesise(self, teacher: str) -> JobView:
        """A synthesis job that nobody disturbed, once it has succeeded."""
        job = self.client.create_synthesis_job({"teacher": teacher, **SYNTHESIS})
        ended = self.client.wait(job.id)
        assert ended.status == "succeeded", ended.error
        return ended

    def shards(self, job: JobView) -> list[Shard]:
        return self.client.get_dataset(job.result["dataset"]).shards


WORLDS: list[World] = []
"""Those that run."""


@contextmanager
def world(folder: Path, **variables: str) -> Iterator[World]:
    """A world on an empty folder; `variables` are added to the environment of its processes."""
    redis = RedisServer(folder / "redis")
    redis.start()
    proxy = FaultProxy(("127.0.0.1", redis.server.port))
    given = {name: value for name, value in os.environ.items() if not name.startswith("DEARKD_")}
    url = redis.server.url
    tree = UpTree(
        folder / "up",
        port=0,
        environment={**given, "DEARKD_REDIS_URL": url.replace(str(redis.server.port), str(proxy.port)), **variables},
        say=lambda line: print(line, flush=True),
    )
    try:
        with tree, Client(tree.url) as client:
            settings = Settings(
                redis_url=url,
                storage_url=tree.storage_url,
                cache_dir=folder / "cache",
                s3_endpoint=variables.get("DEARKD_S3_ENDPOINT"),
            )
            here = World(tree, redis, proxy, client, settings)
            WORLDS.append(here)
            try:
                yield here
            finally:
                WORLDS.remove(here)
    finally:
        proxy.close()
        if redis.process is not None and redis.process.poll() is None:
            redis.process.terminate()
            redis.process.wait()


@contextmanager
def another_worker(settings: Settings, folder: Path) -> Iterator[None]:
    """A second synth worker, past the proxies."""
    command = "import sys; from dearkd.work.worker import main; sys.exit(main('synth'))"
    with services.process("-c", command, env=services.environment(settings, **SHORT), log=folder / "second.log"):
        yield


@dataclass(frozen=True)
class Workers:
    """The processes at work on a unit: the supervisor, its rq worker, and the horse that computes."""

    supervisor: int
    worker: int
    horse: int


def workers() -> list[Workers]:
    """Those below this process that have a horse at work."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = process.parent()
            if process.status() == psutil.STATUS_ZOMBIE or parent is None or not _spawned(parent):
                continue
            supervisor = parent.parent()
            # A horse is a fork of its rq worker, which the supervisor spawned; what a horse forks loads data.
            if supervisor is not None and not _spawned(supervisor):
                found.append(Workers(supervisor.pid, parent.pid, process.pid))
    return found


def _spawned(process: psutil.Process) -> bool:
    return "--multiprocessing-fork" in process.cmdline()


def at_work(*, seconds: float = 120) -> Workers:
    """The one that is at work, once there is only one; another queue's may look for something to do for a moment."""
    found: list[Workers] = []

    def one() -> bool:
        found[:] = workers()
        return len(found) == 1

    eventually(one, seconds=seconds)
    return found[0]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
