"""What single hostile requests cost: the answer, its seconds, how long others waited, and memory.

    python benchmarks/attacks.py --json

A whole `dearkd up` as real processes in an empty folder, on loopback. Each attack is one bounded request (or a bounded
number of connections) of the audit of 2026-11-27; `/healthz` is asked all the while by another thread. Takes about
three minutes. It exits 1 if one was answered by a 5xx, or the server did not answer an honest request afterwards.
"""

import argparse
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from dearkd.data.shard_files import Sample, write_shard
from dearkd.local.up import UpTree
from dearkd.specs import TeacherSpec
from dearkd.vision.teachers import build_teacher, save_teacher

SPEC = {
    "name": "attack",
    "architecture": "resnet10t",
    "num_classes": 10,
    "in_chans": 1,
    "image_size": 32,
    "mean": [0.5],
    "std": [0.5],
}
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c636000000002000148afa4710000"
    "000049454e44ae426082"
)


@dataclass
class Watch:
    """The longest answer of `/healthz`, and the peak of memory of the API and of all workers, while it is entered."""

    url: str
    api: psutil.Process
    longest: float = 0.0
    api_peak: int = 0
    worker_peak: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watch":
        self._threads = [threading.Thread(target=loop) for loop in (self._ask, self._weigh)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=120, trust_env=False) as http:
            while not self._over.wait(0.02):
                begin = time.monotonic()
                http.get("/healthz")
                self.longest = max(self.longest, time.monotonic() - begin)

    def _weigh(self) -> None:
        while not self._over.wait(0.05):
            self.api_peak = max(self.api_peak, self.api.memory_info().rss)
            for process in psutil.Process().children(recursive=True):
                if process.pid != self.api.pid:
                    try:
                        self.worker_peak = max(self.worker_peak, process.memory_info().rss)
                    except psutil.NoSuchProcess:
                        continue


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def upload(http: httpx.Client, weights: bytes, **change: Any) -> httpx.Response:
    parts = {"teacher": (None, json.dumps(SPEC | change), "application/json"), "weights": ("w", weights)}
    return http.post("/v1/teachers", files=parts)


def stalled(http: httpx.Client, count: int) -> httpx.Response:
    """Bodies that never come, held while an honest client lists teachers."""
    head = (
        "POST /v1/synthesis-jobs HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        "content-length: 9",
    )
    text = "\r\n".join((*head, "", "")).encode()
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", http.base_url.port or 0)))
            connection.sendall(text)
        return http.get("/v1/teachers")


def attacks(honest: bytes, storage: Path) -> Iterator[tuple[str, Callable[[httpx.Client], httpx.Response]]]:
    tensor = '{"dtype":"F32","shape":%s,"data_offsets":[0,0]}'
    many = ",".join(f'"{i}":{tensor % "[0]"}' for i in range(700_000))
    yield (
        "header of 150,000 dimensions",
        lambda http: upload(http, header('{"a":' + tensor % ("[" + ",".join(["9999999"] * 150_000) + "]") + "}")),
    )
    yield "header of 700,000 tensors", lambda http: upload(http, header("{" + many + "}"))
    yield "header of 99 MB of {}", lambda http: upload(http, header('{"a":[' + "{}," * 33_000_000 + "{}]}"))
    yield (
        "model_args that build 9,000 blocks",
        lambda http: upload(http, honest, architecture="resnet18", model_args={"layers": [9000, 1, 1, 1]}),
    )
    folder = storage / "attack"
    folder.mkdir()
    write_shard(folder / "part-0.tar", (Sample(f"{i}", PNG, "png", i % 2, {}) for i in range(4)))
    (folder / "class_names.json").write_text(json.dumps([f"n{i}" for i in range(2_000_000)]))
    yield "class_names.json of 2 million names", lambda http: http.post("/v1/datasets", json={"prefix": "attack"})
    yield (
        "a foreign page",
        lambda http: http.post(
            "/v1/synthesis-jobs", content="{}", headers={"content-type": "text/plain", "origin": "http://evil.example"}
        ),
    )
    yield "a foreign host", lambda http: http.get("/v1/teachers", headers={"host": "evil.example"})
    yield "a misspelt parameter", lambda http: http.post("/v1/synthesis-jobs?dryrun=true", json={"teacher": "x"})
    yield "a prefix segment of 300 characters", lambda http: http.post("/v1/datasets", json={"prefix": "x" * 300})
    yield "400 stalled bodies, and an honest list", lambda http: stalled(http, 400)


@contextmanager
def running() -> Iterator[UpTree]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DEARKD_")}
    with tempfile.TemporaryDirectory() as folder, UpTree(Path(folder), port=0, environment=clean) as tree:
        yield tree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with running() as tree, httpx.Client(base_url=tree.url, timeout=300, trust_env=False) as http:
        api = psutil.Process(tree._families["api"].head)
        weights = tree.data / "honest.safetensors"
        save_teacher(build_teacher(TeacherSpec.check(SPEC)), weights)
        honest = weights.read_bytes()
        for what, attack in attacks(honest, tree.data / "storage"):
            with Watch(tree.url, api) as watch:
                begin = time.monotonic()
                answer = attack(http)
                seconds = time.monotonic() - begin
            code = answer.json().get("code") if answer.status_code >= 400 else None
            rows.append(
                {
                    "attack": what,
                    "status": answer.status_code,
                    "code": code,
                    "seconds": round(seconds, 2),
                    "healthz_longest": round(watch.longest, 3),
                    "api_peak_mib": watch.api_peak // 2**20,
                    "workers_peak_mib": watch.worker_peak // 2**20,
                }
            )
            print(*rows[-1].values(), sep="\t", file=sys.stderr, flush=True)
        after = upload(http, honest)
    if arguments.json:
        print(json.dumps({"attacks": rows, "honest_upload_afterwards": after.status_code}, indent=1))
    return 0 if after.status_code == 201 and all(row["status"] < 500 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
