"""Real services for tests: Redis, the API as a process of its own, an inspector."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx
import psutil
import pytest
from redis import Redis

from dearkd.jobs.store import JobStore
from dearkd.local.embedded_redis import embedded_redis, free_port
from dearkd.settings import Settings
from dearkd.storage.objects import Storage
from dearkd.work.worker import open_ledger


def eventually(condition: Callable[[], object], *, seconds: float = 200) -> None:
    """Wait for what must happen; the bound is there for the case that it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # asking is work too: for the API, for Redis, for storage


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of database 0 of a Redis that lives as long as the session."""
    with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


def database(redis_server: str, number: int) -> str:
    """The URL of another database of the same Redis, emptied: one remembers one storage."""
    url = f"{redis_server.rpartition('/')[0]}/{number}"
    with Redis.from_url(url) as redis:
        redis.flushdb()
    return url


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """What a process needs to run under these settings."""
    told = settings.model_dump(exclude_unset=True, exclude_none=True)
    given = {f"DEARKD_{name.upper()}": str(value) for name, value in told.items()}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DEARKD_")}
    return clean | given | {"PYTHONUNBUFFERED": "1"} | more


@contextmanager
def process(
    *command: str,
    env: Mapping[str, str],
    log: Path,
    python: str | Path = sys.executable,
    within: Sequence[str] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process for as long as the context lasts; ended by SIGTERM, after a while by SIGKILL.

    The words of `within` stand before its command line: a program that becomes it.
    """
    with log.open("ab") as output:
        line = [*within, str(python), *command]
        started = subprocess.Popen(line, env=dict(env), stdout=output, stderr=subprocess.STDOUT)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@dataclass(frozen=True)
class Api:
    """A running API, and the same Redis and storage by hand."""

    settings: Settings
    http: httpx.Client
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return self.settings.url

    @cached_property
    def store(self) -> JobStore:
        return open_ledger(self.settings).store

    @cached_property
    def storage(self) -> Storage:
        return Storage.open(self.settings)


@contextmanager
def serving(settings: Settings, folder: Path, python: str | Path = sys.executable, **more: str) -> Iterator[Api]:
    """`python -m dearkd_api` under these settings, on a free port of loopback; `more` is added to its environment."""
    port = free_port()
    settings = settings.model_copy(update={"port": port, "url": f"http://127.0.0.1:{port}"})
    log = folder / "api.log"
    with (
        process("-m", "dearkd_api", env=environment(settings, **more), log=log, python=python) as server,
        httpx.Client(base_url=settings.url, timeout=90, trust_env=False) as http,
    ):

        def alive() -> bool:
            assert server.poll() is None, log.read_text()
            try:
                return http.get("/healthz").status_code == 200
            except httpx.TransportError:
                return False

        eventually(alive)
        yield Api(settings, http, server, log)


@contextmanager
def inspecting(settings: Settings, folder: Path) -> Iterator[psutil.Process]:
    """A real synth worker, of which only the inspector has something to do: its process."""
    command = "import sys; from dearkd.work.worker import main; sys.exit(main('synth'))"
    with process("-c", command, env=environment(settings), log=folder / "worker.log") as worker:
        yield psutil.Process(worker.pid)


@contextmanager
def suspended(head: psutil.Process) -> Iterator[None]:
    """Let a process and all below it stand still for as long as the block runs."""
    stopped = [head, *head.children(recursive=True)]
    for process in stopped:
        # One that was ending when it was listed may be gone.
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()
