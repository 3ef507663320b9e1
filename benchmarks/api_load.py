"""The control API under load: many clients at once, busy workers beside it, and thousands of job records.

    python benchmarks/api_load.py --json

Redis, the API and two synth workers run as real processes. 50 clients each post jobs, poll them and list pages, for a
fixed number of requests: once with the workers stopped, once while both compute. Beside these, 200 clients of one
process poll a job each every two seconds, whatever the answers take. Then records are written until there are 10,000,
and the time of a page and the memory of the API are compared with those at 100. It exits 1 if a request was answered by
anything but what it asked for, or an accepted job is missing afterwards.
"""

import argparse
import asyncio
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from safetensors.torch import save_file

from dearkd.client import Client
from dearkd.errors import DearKDError, Unavailable
from dearkd.jobs.queue import require_worker
from dearkd.jobs.store import JobStore
from dearkd.local.embedded_redis import embedded_redis, free_port
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.vision.teachers import build_teacher
from dearkd.work.worker import open_ledger

TEACHER = TeacherSpec(
    name="untrained", architecture="resnet10t", num_classes=10, in_chans=1, image_size=32, mean=[0.5], std=[0.5]
)
WORKER = "import sys; from dearkd.work.worker import main; sys.exit(main('synth'))"
BUSY = {"images_per_class": 20, "batch_size": 100, "shard_samples": 100, "parallelism": 2, "priority": "high"}
"""Two shards at once; with the iterations below they take hours, and are canceled."""
FEW, MANY = 100, 10_000
POLLING, POLL_SECONDS, POLLS = 200, 2.0, 15


@contextmanager
def running(*command: str, settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    given = {f"DEARKD_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_unset=True).items()}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DEARKD_")}
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, *command], env=clean | given, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Load:
    """Some clients at once; what each call took, in seconds, and what came that should not have."""

    def __init__(self, url: str, teacher: str) -> None:
        self.url, self.teacher = url, teacher
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.errors: list[str] = []
        self.accepted: list[str] = []
        self._mutex = threading.Lock()

    def run(self, clients: int, rounds: int) -> float:
        began = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(self._client, [rounds] * clients))
        return time.monotonic() - began

    def _client(self, rounds: int) -> None:
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as http:
            for number in range(rounds):
                posted = self._ask(
                    http, "post a job", 202, "POST", "/v1/synthesis-jobs", json={"teacher": self.teacher}
                )
                if posted is not None:
                    with self._mutex:
                        self.accepted.append(posted["id"])
                    for _ in range(4):
                        self._ask(http, "get a job", 200, "GET", posted["links"]["self"])
                self._ask(http, "list a page", 200, "GET", "/v1/synthesis-jobs?limit=50")
                if number % 3 == 0:
                    self._ask(http, "healthz", 200, "GET", "/healthz")

    def _ask(self, http: httpx.Client, name: str, status: int, method: str, path: str, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            answer = http.request(method, path, **more)
        except httpx.HTTPError as error:
            with self._mutex:
                self.errors.append(f"{name}: {error!r}")
            return None
        took = time.perf_counter() - began
        with self._mutex:
            self.seconds[name].append(took)
            if answer.status_code != status:
                self.errors.append(f"{name}: {answer.status_code} {answer.text[:200]}")
                return None
        return answer.json()

    def lost(self, client: Client) -> list[str]:
        """Accepted jobs that the API does not know, or does not list."""
        listed = {job.id for job in client.list_jobs("synthesis")}
        return [identifier for identifier in self.accepted if identifier not in listed]

    def report(self, wall: float, lost: int) -> dict[str, Any]:
        calls = {
            name: {"requests": len(taken), "p50_ms": percentile(taken, 50), "p99_ms": percentile(taken, 99)}
            for name, taken in sorted(self.seconds.items())
        }
        total = sum(len(taken) for taken in self.seconds.values())
        return {
            "seconds": round(wall, 1),
            "requests_per_second": round(total / wall, 1),
            "calls": calls,
            "errors": len(self.errors),
            "first_errors": self.errors[:3],
            "accepted": len(self.accepted),
            "lost": lost,
        }


async def poll(url: str, paths: Sequence[str], clients: int, every: float, rounds: int) -> dict[str, Any]:
    """Clients that each GET a path every so many seconds, begun evenly spread: what the answers took."""
    taken: list[float] = []
    errors: list[str] = []

    async def client(number: int, http: httpx.AsyncClient) -> None:
        begin = start + every * number / clients
        for due in (begin + every * turn for turn in range(rounds)):
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            began = time.perf_counter()
            answer = await http.get(paths[number % len(paths)])
            taken.append(time.perf_counter() - began)
            if answer.status_code != 200:
                errors.append(answer.text[:200])

    async with AsyncExitStack() as stack:
        # Made before the first request: each takes time in which this process measures nothing rightly.
        context = ssl.create_default_context()
        opened = [httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, verify=context) for _ in range(clients)]
        for http in opened:
            await stack.enter_async_context(http)
        start = time.perf_counter() + 1
        await asyncio.gather(*map(client, range(clients), opened))
    return {
        "clients": clients,
        "every_seconds": every,
        "requests": len(taken),
        "p50_ms": percentile(taken, 50),
        "p99_ms": percentile(taken, 99),
        "errors": len(errors),
    }


def percentile(seconds: list[float], rank: int) -> float:
    return round(1000 * statistics.quantiles(seconds, n=100, method="inclusive")[rank - 1], 1)


def page_ms(url: str, requests: int = 200) -> dict[str, float]:
    """Median time of a page of 50 and, beside each, of a call that looks at nothing: a noisy machine slows both."""
    taken: dict[str, list[float]] = {"/v1/synthesis-jobs?limit=50": [], "/healthz": []}
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        for _ in range(requests):
            for path, seconds in taken.items():
                began = time.perf_counter()
                http.get(path).raise_for_status()
                seconds.append(time.perf_counter() - began)
    page, bare = (1000 * statistics.median(seconds) for seconds in taken.values())
    return {"page_ms": round(page, 2), "healthz_ms": round(bare, 2)}


def fill(store: JobStore, teacher: str, count: int) -> None:
    """Records of queued jobs, written as the API writes them, until there are `count`."""
    spec = SynthesisSpec.resolve({"teacher": teacher, "images_per_class": 1}, TEACHER)
    have = int(store.redis.zcard("dearkd:jobs:synthesis"))  # type: ignore[arg-type]  # the sync client's answer
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.create_synthesis(spec, images=10), range(count - have)))


def measure(folder: Path, clients: int, rounds: int, many: int) -> dict[str, Any]:
    with ExitStack() as stack:
        port = free_port()
        settings = Settings(
            redis_url=stack.enter_context(embedded_redis(folder / "redis")),
            storage_url=f"file://{folder / 'storage'}",
            cache_dir=folder / "cache",
            port=port,
            url=f"http://127.0.0.1:{port}",
            max_queued_jobs=10 * many,
            torch_threads=1,
        )
        api = stack.enter_context(running("-m", "dearkd_api", settings=settings, log=folder / "api.log"))
        memory = psutil.Process(api.pid).memory_info
        client = stack.enter_context(Client(settings.url))
        store = open_ledger(settings).store
        wait_for(lambda: is_ready(client))
        weights = folder / "weights.safetensors"
        save_file(build_teacher(TEACHER).state_dict(), weights)
        with running("-c", WORKER, settings=settings, log=folder / "inspector.log"):
            wait_for(lambda: has_inspector(store))
            teacher = client.create_teacher(TEACHER, weights).id
        report: dict[str, Any] = {"cores": os.cpu_count(), "clients": clients}

        idle = Load(settings.url, teacher)
        wall = idle.run(clients, rounds)
        report["workers stopped"] = idle.report(wall, len(idle.lost(client)))

        with ExitStack() as workers:
            phases = [{"resolution": 32, "iterations": 90_000}]
            long = client.create_synthesis_job({"teacher": teacher, **BUSY, "phases": phases}).id
            for number in range(2):
                log = folder / f"worker-{number}.log"
                workers.enter_context(running("-c", WORKER, settings=settings, log=log))
            wait_for(lambda: int(store.redis.zcard("dearkd:leases")) == 2)  # type: ignore[arg-type]  # the sync client
            wait_for(lambda: client.get_job(long).metrics.get("iteration", 0) > 0)
            busy = Load(settings.url, teacher)
            wall = busy.run(clients, rounds)
            report["workers busy"] = busy.report(wall, len(busy.lost(client)))
            paths = [f"/v1/synthesis-jobs/{identifier}" for identifier in [long, *busy.accepted[:49]]]
            report["polled"] = asyncio.run(poll(settings.url, paths, POLLING, POLL_SECONDS, POLLS))
            client.cancel_job(long)

        before = int(store.redis.zcard("dearkd:jobs:synthesis"))  # type: ignore[arg-type]  # the sync client
        store.redis.flushall()
        fill(store, teacher, FEW)
        few = page_ms(settings.url)
        memory_few = memory().rss
        fill(store, teacher, many)
        more = page_ms(settings.url)
        client_pages = sum(1 for _ in client.list_jobs("synthesis"))
        report["records"] = {
            "jobs_posted_before": before,
            "at": [FEW, many],
            "page": [few, more],
            "page_ratio": round(more["page_ms"] / few["page_ms"], 2),
            "page_ratio_over_healthz": round(
                (more["page_ms"] / more["healthz_ms"]) / (few["page_ms"] / few["healthz_ms"]), 2
            ),
            "api_rss_mb": [round(memory_few / 1e6, 1), round(memory().rss / 1e6, 1)],
            "listed_through_all_pages": client_pages,
        }
        return report


def is_ready(client: Client) -> bool:
    try:
        return client.is_ready()
    except DearKDError:
        return False


def has_inspector(store: JobStore) -> bool:
    try:
        require_worker(store.redis, "inspect")
    except Unavailable:
        return False
    return True


def wait_for(condition: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"this did not come about within {seconds:.0f} s")
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10, help="of each client: a post, four polls, a page")
    parser.add_argument("--records", type=int, default=MANY)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dearkd-load-") as folder:
        report = measure(Path(folder), options.clients, options.rounds, options.records)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for name in ("workers stopped", "workers busy"):
            part = report[name]
            print(
                f"{name}: {part['requests_per_second']} requests/s, {part['errors']} errors, "
                f"{part['lost']} of {part['accepted']} lost"
            )
            for call, figures in part["calls"].items():
                print(f"    {call:12} p50 {figures['p50_ms']:8} ms   p99 {figures['p99_ms']:8} ms")
        print(f"polled: {report['polled']}")
        print(f"records: {report['records']}")
    bad = any(report[name]["errors"] or report[name]["lost"] for name in ("workers stopped", "workers busy"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
