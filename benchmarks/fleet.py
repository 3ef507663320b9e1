"""A thousand workers at one Redis and one bucket: what their claims, signs of life and publications cost.

    PYTHONPATH=. python benchmarks/fleet.py

Workers are threads of a few processes. Each runs the worker's own loop (`dearkd.work.worker.drain`): it claims of the
ledger, keeps its lease by a second thread, tells progress, asks before it publishes, and stores a shard with what lies
beside it; only that it waits in place of computing, and a shard holds a few bytes. Redis is a real one with its
append-only file. Six parts, four to five minutes together:

- `rush`: every worker claims and gives back as fast as it can, at one job; of Redis alone.
- `steady`: every worker makes a shard each `--shard-seconds`, as a GPU would; the shards are files.
- `publications`: a few workers make shards without a pause in a bucket of OpenStack Swift: what that can take.
- `bucket`: as many shards a second as in `steady`, of a fifth of the workers, in that bucket: a thousand that open it
  leave a small machine to no server.
- `listening`: the rq workers of all of them, which wait for a task; `real`: one whole `dearkd worker synth`.

What a worker costs Redis is its own CPU time (`INFO cpu`) less what it takes when it is left alone. From that: how many
workers one Redis carries at 60 % of a core.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import psutil
from api_load import percentile
from fleet_workers import Timings, listen, rush, work
from redis_watch import Watch
from scaling import TEACHER, WORKER, store_teacher, variables

from dearkd.jobs.queue import alive
from dearkd.local.embedded_redis import embedded_redis
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec
from dearkd.work.worker import open_ledger
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, swift

PARTS = ("rush", "listening", "real", "publications", "steady", "bucket")
SHARE = 0.6
"""Of a core that Redis may be busy: behind that, waits grow."""


def figures(answers: list[Timings], seconds: float) -> dict[str, Any]:
    joined: Timings = defaultdict(list)
    for answer in answers:
        for name, taken in answer.items():
            joined[name] += taken
    return {
        name: {
            "per_second": round(len(taken) / seconds, 1),
            "p50_ms": percentile(taken, 50),
            "p99_ms": percentile(taken, 99),
        }
        for name, taken in sorted(joined.items())
        if len(taken) > 1
    }


# --- the six parts --------------------------------------------------------------------------------------------------


class Fleet:
    """The servers, and the workers that are let loose on them in processes of their own."""

    def __init__(self, settings: Settings, folder: Path, workers: int, processes: int) -> None:
        self.settings, self.folder, self.workers, self.processes = settings, folder, workers, processes
        self.ledger = open_ledger(settings)
        below = psutil.Process().children(recursive=True)
        self._servers = {"S3 server": [one for one in below if "swift" in " ".join(one.cmdline())]}
        self._context = multiprocessing.get_context("spawn")
        self.teacher = store_teacher(self.ledger, folder)

    def submit(self, shards: int, parallelism: int, **fields: Any) -> str:
        posted = {"teacher": self.teacher, "images_per_class": 2 * shards, "batch_size": 20, "shard_samples": 20}
        rules = {"parallelism": parallelism, "min_teacher_accuracy": 0}
        spec = SynthesisSpec.resolve(posted | rules | fields, TEACHER)
        return self.ledger.store.create_synthesis(spec, images=spec.num_samples).id

    def start(self, target: Callable[..., None], *more: Any) -> list[Any]:
        """Processes that run `target`, each with its part of the workers."""
        shares = [len(range(number, self.workers, self.processes)) for number in range(self.processes)]
        started = [self._context.Process(target=target, args=(self.settings, share, *more)) for share in shares]
        for process in started:
            process.start()
        self._servers["workers"] = [psutil.Process(process.pid) for process in started]
        return started

    def end(self, started: list[Any]) -> None:
        del self._servers["workers"]
        for process in started:
            process.join(90)
        self.ledger.redis.flushdb()

    def watch(self) -> Watch:
        return Watch(self.ledger.redis, self._servers)

    def idle(self, seconds: float = 5) -> float:
        """The CPU that Redis takes when it is left alone, as a share of a core."""
        watch = self.watch()
        time.sleep(seconds)
        return float(watch.report()["redis_cpu"])

    def rush(self, seconds: float) -> dict[str, Any]:
        self.submit(2 * self.workers, min(1024, self.workers))
        answers, begin = self._context.Queue(), self._context.Event()
        started = self.start(rush, seconds, begin, answers)
        for _ in started:
            answers.get()  # each is there
        watch = self.watch()
        begin.set()
        found = [answers.get() for _ in started]
        report = watch.report() | {"calls": figures(found, seconds)}
        self.end(started)
        # Threads of a busy machine end late: what Redis counted in the whole time is right.
        claims = report["costliest"]["zpopmin"]["per_second"]
        one = report["redis_cpu"] / claims
        return report | {"claims_per_second": claims, "redis_ms_per_claim_and_release": round(1000 * one, 3)}

    def steady(self, shard_seconds: float, seconds: float) -> dict[str, Any]:
        shards = self.workers + min(20_000, int(2 * self.workers * seconds / shard_seconds))
        job = self.submit(shards, min(1024, self.workers))
        answers, begin, stop = self._context.Queue(), self._context.Event(), self._context.Event()
        started = self.start(work, shard_seconds, begin, stop, answers)
        began = time.monotonic()
        # Whoever makes shards without a pause is seldom found at one.
        while self.ledger.redis.zcard("dearkd:leases") < self.workers and time.monotonic() - began < min(
            60, 10 + shard_seconds
        ):
            time.sleep(0.5)
        began_to_work = round(time.monotonic() - began, 1)
        watch = self.watch()
        begin.set()
        done = self.ledger.redis.hlen(f"dearkd:job:{job}:done")
        lost = self.lost()
        time.sleep(seconds)
        report = watch.report()
        made = self.ledger.redis.hlen(f"dearkd:job:{job}:done") - done
        at_work, lost = self.ledger.redis.zcard("dearkd:leases"), self.lost() - lost
        stop.set()
        found = [answers.get() for _ in started]
        self.end(started)
        report |= {"all_at_work_after_seconds": began_to_work, "at_work": at_work, "leases_lost": lost}
        return report | {
            "shards_per_second": round(made / seconds, 2),
            "calls": figures(found, seconds),
        }

    def lost(self) -> int:
        found = cast("dict[bytes, bytes]", self.ledger.redis.hgetall("dearkd:measures"))
        return sum(int(count) for name, count in found.items() if name.startswith(b"dearkd_leases_lost_total"))

    def listening(self, seconds: float) -> dict[str, Any]:
        stop = self._context.Event()
        started = self.start(listen, stop)
        while (there := alive(self.ledger.redis, "inspect")) < self.workers:
            time.sleep(0.5)
        watch = self.watch()
        time.sleep(seconds)
        report = watch.report()
        stop.set()
        self.end(started)
        return report | {"workers": there}

    def real(self, seconds: float) -> dict[str, Any]:
        """A real worker, with all that it has, without work and with it."""
        environment = os.environ | variables(self.settings)
        report = {}
        with (self.folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen([sys.executable, "-c", WORKER], env=environment, stdout=log, stderr=log)
            try:
                time.sleep(8)
                watch = self.watch()
                time.sleep(seconds)
                report["idle"] = watch.report()
                job = self.submit(2, 1, phases=[{"resolution": 8, "iterations": 90_000}])
                began = time.monotonic()
                while "iteration" not in self.ledger.store.get(job).metrics and time.monotonic() - began < 120:
                    time.sleep(0.5)
                watch = self.watch()
                time.sleep(seconds)
                report["at_work"] = watch.report()
                self.ledger.store.cancel(job)
            finally:
                worker.terminate()
                worker.wait(30)
        return report


def capacity(report: dict[str, Any], workers: int) -> dict[str, Any]:
    """How many workers one Redis carries, with the terms of the sum: shares of a core for each worker."""
    alone = report["redis_idle_cpu"]
    ledger, listening = ((report[part]["redis_cpu"] - alone) / workers for part in ("steady", "listening"))
    connections = report["real"]["at_work"]["connections"] - report["connections_of_this_program"]
    return {
        "share_of_core": SHARE,
        "ledger_per_worker": round(ledger, 6),
        "listening_per_worker": round(listening, 6),
        "workers_by_cpu": int(SHARE / (ledger + listening)),
        "connections_per_worker": connections,
        "workers_by_10000_connections": 10_000 // connections,
    }


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    (folder / "s3").mkdir()
    with embedded_redis(folder / "redis") as url, swift(folder / "s3") as s3:
        files = Settings(redis_url=url, cache_dir=folder / "cache", storage_url=f"file://{folder}/storage")
        fleet = Fleet(files, folder, options.workers, options.processes)
        # Databases of their own: one remembers one storage.
        others = [files.model_copy(update={"redis_url": f"{url.removesuffix('0')}{number}"}) for number in (1, 2)]
        few = Fleet(s3.settings("few", others[0]), folder, options.publishers, 2)
        fifth = Fleet(s3.settings("fifth", others[1]), folder, options.workers // 5, options.processes)
        report: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg(), "workers": options.workers}
        report["connections_of_this_program"] = cast("dict[str, int]", few.ledger.redis.info("clients"))[
            "connected_clients"
        ]
        parts: dict[str, Callable[[], Any]] = {
            "redis_idle_cpu": fleet.idle,
            "rush": lambda: fleet.rush(options.seconds / 4),
            "listening": lambda: fleet.listening(options.seconds / 2),
            "real": lambda: fleet.real(options.seconds / 2),
            "publications": lambda: {"workers": options.publishers} | few.steady(0.01, options.seconds / 2),
            "steady": lambda: fleet.steady(options.shard_seconds, options.seconds),
            "bucket": lambda: fifth.steady(options.shard_seconds / 5, options.seconds),
            "capacity": lambda: capacity(report, options.workers),
        }
        for name, part in parts.items():
            if name not in options.parts:
                continue
            report[name] = part()
            print(name, json.dumps(report[name]), file=sys.stderr, flush=True)
        report["load_after"] = os.getloadavg()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--publishers", type=int, default=8)
    parser.add_argument("--shard-seconds", type=float, default=180)
    parser.add_argument("--seconds", type=float, default=40, help="of the steady part; the others are shorter")
    parser.add_argument("--parts", nargs="+", default=["redis_idle_cpu", *PARTS, "capacity"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dearkd-fleet-") as folder:
        report = measure(Path(folder), options)
    print(json.dumps(report, indent=2))
    return 1 if any(report.get(part, {}).get("leases_lost") for part in ("steady", "bucket")) else 0


if __name__ == "__main__":
    sys.exit(main())
