"""API keys are in the environment of the API alone, of all that `dearkd up` or a worker starts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dearkd.local.embedded_redis import embedded_redis
from tests.support.services import eventually

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc"),
]

KEYS = {
    "DEARKD_API_KEYS": "checked-key-0123456789",
    "dearkd_admin_keys": "admin-key-0123456789",
    "DEARKD_API_KEY": "clients-key-0123456789",
}


def holders(processes: list[psutil.Process]) -> dict[str, set[str]]:
    """By variable: the command lines of the processes that have its key anywhere in their environment."""
    found: dict[str, set[str]] = {name: set() for name in KEYS}
    for process in processes:
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        for name, key in KEYS.items():
            if key.encode() in environment:
                found[name].add(" ".join(process.cmdline()))
    return found


def surroundings(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DEARKD_")}
    return clean | KEYS | more


def test_in_the_tree_only_the_api_has_the_keys_that_it_checks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dearkd.cli", "up", "--data", str(tmp_path / "data"), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=surroundings()) as up:
        try:
            assert up.stdout is not None
            assert json.loads(up.stdout.readline())["pid"] == up.pid
            children = psutil.Process(up.pid).children(recursive=True)
            assert len(children) >= 8  # Redis, the guardian, the API, two supervisors, three that listen
            found = holders(children)
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(60)
    assert [command.rpartition(" ")[2] for command in found["DEARKD_API_KEYS"]] == ["dearkd_api"]
    assert found["dearkd_admin_keys"] == found["DEARKD_API_KEYS"]
    assert found["DEARKD_API_KEY"] == set()


def test_what_a_worker_starts_has_no_key(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "redis") as redis_url:
        check_worker(tmp_path, redis_url)


def check_worker(tmp_path: Path, redis_url: str) -> None:
    environment = surroundings(DEARKD_REDIS_URL=redis_url, DEARKD_STORAGE_URL=f"file://{tmp_path}")
    command = [sys.executable, "-m", "dearkd.cli", "worker", "synth"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as worker:
        try:
            inside = psutil.Process(worker.pid)
            eventually(lambda: len(inside.children(recursive=True)) >= 2)
            assert holders(inside.children(recursive=True)) == {name: set() for name in KEYS}
        finally:
            worker.terminate()
            worker.wait(60)
