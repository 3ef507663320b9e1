"""Our services, started by the exact command and environment of the compose file, on a root that they cannot write.

There need be no engine: `tests/support/containers.py` says what stands in for a container, and what that lacks. Only
addresses are others (of a real Redis, a real S3 server and the API), and the name of the S3 account.
"""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import pytest

from dearkd.client import Client
from dearkd.local.embedded_redis import free_port
from dearkd.specs import TeacherSpec
from tests.support.compose import SERVICES, Start, start_of
from tests.support.containers import READ_EVERY_FILE, capabilities, contained, require_containers
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, swift
from tests.support.scrapes import scrape
from tests.support.services import database, eventually, redis_server

__all__ = ["redis_server"]

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

ADMIN_KEY = "the-key-of-the-secret-0123456789"
SYNTHESIS = {
    "images_per_class": 2,
    "batch_size": 20,
    "shard_samples": 20,
    "phases": [{"resolution": 12, "iterations": 4}],
    "min_teacher_accuracy": 0,
}
TRAINING = {
    "student": {"patch_size": 8},
    "stage_one": {"epochs": 1},
    "stage_two": {"epochs": 1},
    "batch_size": 16,
    "workers": 1,
}


@dataclass
class Stack:
    """What surrounds the services: where they find it, and their folders."""

    folder: Path
    addresses: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.addresses['DEARKD_PORT']}"

    def line(self, start: Start, name: str) -> tuple[list[str], dict[str, str]]:
        cache = self.folder / "cache"
        cache.mkdir(exist_ok=True)
        return contained(
            start,
            self.folder / name,
            secrets=self.folder / "secrets",
            volumes={cache: "/cache"},
            environment=self.addresses,
        )

    def run(self, start: Start, name: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, as `docker compose exec` would."""
        line, environment = self.line(start, name)
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)

    @contextmanager
    def up(self, service: str) -> Iterator[subprocess.Popen[bytes]]:
        line, environment = self.line(start_of(service), service)
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            stop(process, 60)

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text()


def stop(process: subprocess.Popen[bytes], seconds: float) -> int:
    """End a process as an engine does: SIGTERM, then SIGKILL; returns its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            one.kill()
        return process.wait()


@pytest.fixture(scope="module")
def stack(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require_containers()
    folder = tmp_path_factory.mktemp("compose")
    (folder / "secrets").mkdir()
    for name, secret in (("s3_secret_key", SECRET_KEY), ("admin_key", ADMIN_KEY)):
        (folder / "secrets" / name).write_text(secret + "\n")
        (folder / "secrets" / name).chmod(0o644)
    (folder / "swift").mkdir()
    with swift(folder / "swift") as s3:
        yield Stack(
            folder,
            {
                "DEARKD_REDIS_URL": database(redis_server, 9),
                "DEARKD_S3_ENDPOINT": s3.endpoint,
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "DEARKD_HOST": "127.0.0.1",
                "DEARKD_PORT": str(free_port()),
            },
        )


def check_of_health(stack: Stack) -> Start:
    words = [
        word.replace(":8000/", f":{stack.addresses['DEARKD_PORT']}/") for word in SERVICES["api"]["healthcheck"]["test"]
    ]
    assert words[0] == "CMD"
    return replace(start_of("api"), command=words[1:])


CAPABILITY_BITS = {READ_EVERY_FILE: 2}  # linux/capability.h
WRITES = """
import errno, json, os, shutil, subprocess
told = {}
for folder in ("/cache", "/tmp"):
    shutil.copy(shutil.which("true"), f"{folder}/program")
    try:
        told[f"{folder}/program"] = subprocess.run([f"{folder}/program"]).returncode
    except OSError as error:
        told[f"{folder}/program"] = errno.errorcode[error.errno]
for path in ("/x", "/etc/x", os.path.expanduser("~/x"), "./x", "/cache/x", "/tmp/x", "/run/secrets/admin_key"):
    try:
        open(path, "a").close()
        told[path] = "written"
    except OSError as error:
        told[path] = errno.errorcode[error.errno]
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
told |= {name: status[name].split()[0] for name in ("Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs")}
print(json.dumps(told))
"""


def test_the_stand_in_refuses_what_a_container_would(stack: Stack) -> None:
    done = stack.run(replace(start_of("synth"), command=["python", "-c", WRITES]), "writes")
    assert done.returncode == 0, done.stderr
    left = f"{sum(1 << CAPABILITY_BITS[name] for name in capabilities()):016x}"
    assert json.loads(done.stdout) == {
        "/x": "EROFS",
        "/etc/x": "EROFS",
        "/home/dearkd/x": "EROFS",
        "./x": "EROFS",
        "/cache/x": "written",
        "/tmp/x": "written",
        "/run/secrets/admin_key": "EACCES",
        "/cache/program": 0,
        "/tmp/program": "EACCES",
        "Uid": "10001",
        "Gid": "10001",
        "CapEff": left,
        "CapBnd": left,
        "NoNewPrivs": "1",
    }


COMPILES = """
import torch
compiled = torch.compile(lambda x: x.sin() + x.cos() ** 2)
print(float(compiled(torch.zeros(64)).sum()))
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="the image has g++; here there is none")
def test_what_torch_compiles_is_run_from_the_volume(stack: Stack) -> None:
    """From /tmp nothing is run, so that a job with `compile` would fail there."""
    done = stack.run(replace(start_of("synth"), command=["python", "-c", COMPILES]), "compiles")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["64.0"]
    assert list((stack.folder / "cache" / "inductor").rglob("*.so"))


def test_without_its_secret_the_api_does_not_start(stack: Stack) -> None:
    """Rather than to stand open."""
    start = start_of("api")
    start.environment["DEARKD_ADMIN_KEYS_FILE"] += ".missing"
    done = stack.run(start, "no-secret")
    assert done.returncode != 0
    assert "DEARKD_ADMIN_KEYS_FILE" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_api_synth_and_trainer_are_healthy_work_and_hand_back(
    stack: Stack, plain_teacher: tuple[TeacherSpec, Path]
) -> None:
    before = stack.run(check_of_health(stack), "health-before")
    assert before.returncode != 0, "a check that nothing can fail"
    spec, weights = plain_teacher
    with (
        stack.up("api") as api,
        stack.up("synth") as synth,
        stack.up("trainer") as trainer,
        httpx.Client(base_url=stack.url, trust_env=False) as http,
        Client(stack.url, ADMIN_KEY) as client,
    ):

        def answers() -> bool:
            for service, process in (("api", api), ("synth", synth), ("trainer", trainer)):
                assert process.poll() is None, stack.log(service)
            try:
                return http.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        eventually(answers)
        healthy = stack.run(check_of_health(stack), "health")
        assert healthy.returncode == 0, healthy.stderr
        assert http.get("/v1/datasets").status_code == 401
        for kind in ("synth", "inspect", "trainer"):
            eventually(lambda kind=kind: answers() and scrape(http).value("dearkd_workers", kind=kind) == 1)

        teacher = client.create_teacher(spec, weights)
        job = client.create_synthesis_job({"teacher": teacher.id, **SYNTHESIS})
        run = client.create_training_run({"dataset": job.id, **TRAINING})
        job, run = client.wait(job.id), client.wait(run.id)
        assert job.status == "succeeded", (job.error, stack.log("synth"))
        assert run.status == "succeeded", (run.error, stack.log("trainer"))

        endless = {**SYNTHESIS, "phases": [{"resolution": 12, "iterations": 50_000}]}
        job = client.create_synthesis_job({"teacher": teacher.id, **endless})
        eventually(lambda: client.get_job(job.id).metrics.get("iteration", 0) > 0)
        for service, process in (("synth", synth), ("trainer", trainer), ("api", api)):
            if service == "api":  # the last that can be asked: the shard is there for another worker
                assert client.get_job(job.id).status == "queued"
                assert scrape(http).value("dearkd_leases") == 0
            assert stop(process, int(SERVICES[service]["stop_grace_period"].removesuffix("s"))) == 0, stack.log(service)
    for service in ("api", "synth", "trainer"):
        for sign in ("Read-only file system", "Permission denied", "Traceback", "not writable"):
            assert sign not in stack.log(service), stack.log(service)
