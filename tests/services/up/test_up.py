"""The process tree with a real Redis, and, but for one test, small programs in place of the API and the workers."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from redis import Redis

from dearkd.errors import Conflict, Unavailable
from dearkd.local.embedded_redis import embedded_redis, find_redis_server
from dearkd.local.parts import Part, with_synth_workers
from dearkd.local.up import UpTree

pytestmark = pytest.mark.services

API = """
import http.server, os
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.HTTPServer((os.environ["DEARKD_HOST"], int(os.environ["DEARKD_PORT"])), Ready).serve_forever()
"""

# Writes its pid and that of a child, which ignores SIGTERM, to the file it is given; then does nothing.
WORKER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"],
    stdout=subprocess.PIPE, start_new_session=len(sys.argv) > 2)
child.stdout.readline()
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
time.sleep(600)
"""

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.services.up.test_up import parts
from dearkd.local.up import UpTree
with UpTree(Path(sys.argv[1]), port=0, parts=parts(Path(sys.argv[1]))) as tree:
    print(tree._environment["DEARKD_REDIS_URL"], flush=True)
    tree.wait()
"""


def parts(data: Path) -> list[Part]:
    pids = str(data / "pids")
    return [
        Part("api", (sys.executable, "-S", "-c", API)),
        Part("synth", (sys.executable, "-S", "-c", WORKER, pids)),
        Part("trainer", (sys.executable, "-S", "-c", WORKER, pids, "child in a session of its own")),
    ]


def pids(data: Path) -> list[list[int]]:
    path = data / "pids"
    return [[int(pid) for pid in line.split()] for line in path.read_text().splitlines()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what must happen; the bound is there for the case that it does not."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def in_folder(data: Path) -> list[psutil.Process]:
    """Every process that works in the data folder, or names it in its arguments or environment; ours excepted."""
    found = []
    for process in psutil.process_iter():
        words: list[str] = []
        for read in (lambda: [process.cwd()], process.cmdline, lambda: list(process.environ().values())):  # noqa: B023
            with suppress(psutil.Error):
                words += read()
        if any(str(data) in word for word in words) and process.pid != os.getpid():
            found.append(process)
    return found


@pytest.fixture(autouse=True)
def _no_redis_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEARKD_REDIS_URL", "DEARKD_STORAGE_URL", "DEARKD_CACHE_DIR", "DEARKD_METRICS_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "a data folder"
    yield folder
    for process in in_folder(folder):  # only after a failure, so that it does not spoil other tests
        process.kill()


def test_a_part_that_dies_is_started_again_and_nothing_is_left_at_the_end(data: Path) -> None:
    said: list[str] = []
    with UpTree(data, port=0, parts=parts(data), say=said.append, backoff_seconds=0.01, grace_seconds=0.5) as tree:
        eventually(lambda: len(pids(data)) == 2)
        victim, orphan = pids(data)[0]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(pids(data)) == 3)
        assert not alive(victim)
        assert not alive(orphan), "what a dead part leaves behind must not work on beside its successor"
        assert len(said) == 1, said
        (death,) = said
        assert "died (killed by SIGKILL" in death
        assert "starting it again" in death
        assert tree.storage_url == f"file://{data}/storage"
        assert tree.failure is None
        running = in_folder(data)
        assert find_redis_server().name in {process.name() for process in running}
        assert {process.pid for process in running} > {pid for pair in pids(data)[1:] for pid in pair}
    assert in_folder(data) == []
    assert not any(alive(pid) for pair in pids(data) for pid in pair)


def test_a_redis_that_a_file_names_is_used_and_none_is_started(data: Path, tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "redis") as url:
        (tmp_path / "url").write_text(f"{url}\n")
        given = {**os.environ, "DEARKD_REDIS_URL_FILE": str(tmp_path / "url")}
        with UpTree(data, port=0, parts=parts(data)[:1], environment=given, grace_seconds=0.5) as tree:
            assert "DEARKD_REDIS_URL" not in tree._environment
            assert find_redis_server().name not in {process.name() for process in in_folder(data)}
    (tmp_path / "url").write_text("redis://127.0.0.1:1/0\n")
    with pytest.raises(Unavailable, match="does not answer"), UpTree(data, port=0, parts=(), environment=given):
        pass


def test_the_tree_ends_when_its_root_is_killed_and_can_be_started_again_at_once(data: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(data), str(Path(__file__).parents[3])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as root:
        assert root.stdout is not None
        redis_url = root.stdout.readline().strip()
        with Redis.from_url(redis_url) as redis:
            redis.set("kept", "yes")
        eventually(lambda: len(pids(data)) == 2)
        root.kill()
    with UpTree(data, port=0, parts=parts(data), grace_seconds=0.5) as tree:
        assert not any(alive(pid) for pair in pids(data)[:2] for pid in pair)
        with Redis.from_url(tree._environment["DEARKD_REDIS_URL"]) as redis:
            assert redis.get("kept") == b"yes"
    assert in_folder(data) == []


def test_a_second_tree_on_the_folder_is_refused_and_names_the_first(data: Path) -> None:
    with UpTree(data, port=0, parts=parts(data)[:1]) as first:
        with pytest.raises(Conflict, match="in use by another `dearkd up`") as refusal, UpTree(data, port=0):
            pass
        assert str(os.getpid()) in refusal.value.message
        assert first.url in refusal.value.message
        assert "--data" in refusal.value.message


def test_a_taken_port_is_refused_before_anything_starts(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=rf"port {port} .*--port") as refusal, UpTree(data, port=port):
            pass
    assert refusal.value.code == "port_taken"
    assert not (data / "redis").exists()
    assert in_folder(data) == []


def test_five_deaths_of_one_part_end_the_tree(data: Path) -> None:
    said: list[str] = []
    doomed = Part("synth", (sys.executable, "-S", "-c", "print('no device'); raise SystemExit(3)"))
    tree = UpTree(data, port=0, parts=[*parts(data)[:1], doomed], say=said.append, backoff_seconds=0.001)
    with (
        pytest.raises(
            Unavailable, match=r"synth died \(exit code 3; last line: no device;.*; death 5 within"
        ) as failure,
        tree,
    ):
        tree.wait()
    assert failure.value.code == "part_failed"
    assert len(said) == 4
    assert in_folder(data) == []


def test_a_hurried_stop_does_not_wait_for_the_grace_period(data: Path) -> None:
    stubborn = Part("synth", parts(data)[1].command)
    tree = UpTree(data, port=0, parts=[*parts(data)[:1], stubborn], grace_seconds=3600)
    tree.start()
    eventually(lambda: len(pids(data)) == 1)
    os.kill(pids(data)[0][0], signal.SIGSTOP)  # it cannot even die of SIGTERM now
    stopping = threading.Thread(target=tree.stop)
    stopping.start()
    tree.hurry()
    stopping.join()
    assert in_folder(data) == []


def test_warnings_and_tracebacks_of_a_part_reach_the_terminal_and_all_output_its_log(data: Path) -> None:
    said: list[str] = []
    noisy = "import time; print('INFO all well'); print('WARNING disk nearly full', flush=True); time.sleep(600)"
    part = Part("synth", (sys.executable, "-S", "-c", noisy))
    with UpTree(data, port=0, parts=[*parts(data)[:1], part], say=said.append):
        eventually(lambda: "synth | WARNING disk nearly full" in said)
    assert said == ["synth | WARNING disk nearly full"]
    assert (data / "logs" / "synth.log").read_text() == "INFO all well\nWARNING disk nearly full\n"
    owner = json.loads((data / "up.lock").read_text())
    assert owner["pid"] == os.getpid()


def test_the_command_comes_up_with_the_real_parts_and_ends_on_ctrl_c_without_a_trace(data: Path) -> None:
    command = [sys.executable, "-m", "dearkd.cli", "up", "--data", str(data), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        ready = json.loads(up.stdout.readline())
        assert ready["pid"] == up.pid
        assert httpx.get(f"{ready['url']}/readyz", trust_env=False).status_code == 200
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 1
        assert json.loads(second.stdout)["error"]["code"] == "data_folder_in_use"
        up.send_signal(signal.SIGINT)
        _, err = up.communicate()
    assert up.returncode == 0, err
    assert "Traceback" not in err
    assert in_folder(data) == []


def test_an_embedded_redis_ends_with_the_process_that_asked_for_it(data: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from dearkd.local.embedded_redis import embedded_redis
with embedded_redis(Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program, str(data)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        with Redis.from_url(owner.stdout.readline().strip()) as redis:
            assert redis.ping()
        owner.kill()
    eventually(lambda: in_folder(data) == [])


def test_all_that_parts_write_lies_in_its_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folders() -> dict[str, str]:
        tree = UpTree(data, port=0)
        tree._set_environment()
        return {name: tree._environment[f"DEARKD_{name}"] for name in ("STORAGE_URL", "CACHE_DIR", "METRICS_DIR")}

    assert folders() == {
        "STORAGE_URL": f"file://{data / 'storage'}",
        "CACHE_DIR": str(data / "cache"),
        "METRICS_DIR": str(data / "metrics"),
    }
    monkeypatch.setenv("DEARKD_METRICS_DIR", "/elsewhere")
    assert folders()["METRICS_DIR"] == "/elsewhere"


def test_synth_workers_share_the_cores_unless_threads_are_set(data: Path) -> None:
    """Programs in place of the tree's own workers, of which each says how many threads it was given."""
    show = (
        'import os, sys, time; print(os.environ.get("DEARKD_TORCH_THREADS", "-"), file=open(sys.argv[1], "w"), '
        "flush=True); time.sleep(600)"
    )

    def threads(folder: Path, environment: dict[str, str]) -> dict[str, str]:
        workers = [part for part in with_synth_workers(2) if part.name != "api"]
        files = {part.name: folder / part.name for part in workers}
        told = [
            replace(part, command=(sys.executable, "-S", "-c", show, str(files[part.name])), queues=())
            for part in workers
        ]
        with UpTree(folder, port=0, parts=[*parts(folder)[:1], *told], environment=environment):
            eventually(lambda: all(file.exists() and file.read_text() for file in files.values()))
        return {name: file.read_text().strip() for name, file in files.items()}

    here = {key: value for key, value in os.environ.items() if key != "DEARKD_TORCH_THREADS"}
    each = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert threads(data / "a", here) == {"trainer": "-", "synth": each, "synth-2": each}
    assert threads(data / "b", here | {"DEARKD_TORCH_THREADS": "7"}) == {"trainer": "7", "synth": "7", "synth-2": "7"}
