"""A small real HTTP server that answers what a test tells it to, in the shapes of the API.

It stands in for the API where the client's and the command line's own behaviour is at stake: errors, rendering,
retries, exit codes. What the API itself does is tested against the API.
"""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 200
    body: Any = None
    """A JSON value, or bytes."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class StandInApi:
    """Answers to `METHOD /path` come in the order in which they were added; the last one is repeated."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        self._answers: dict[str, list[Answer]] = defaultdict(list)
        self._mutex = threading.Lock()

    def answer(self, call: str, body: Any = None, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answers[call].append(Answer(status, body, headers or {}))

    def problem(
        self, call: str, status: int, code: str, detail: str, errors: list[dict[str, str]] | None = None
    ) -> None:
        """An RFC 9457 answer."""
        body = {
            "type": "about:blank",
            "title": "No",
            "status": status,
            "detail": detail,
            "code": code,
            "errors": errors,
        }
        self.answer(call, body, status=status, headers={"Content-Type": "application/problem+json"})

    def take(self, request: Request) -> Answer:
        with self._mutex:
            self.requests.append(request)
            waiting = self._answers[f"{request.method} {request.path}"]
            if not waiting:
                return Answer(404, {"detail": f"nothing at {request.path}", "code": "not_found"})
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]


@contextmanager
def stand_in_api() -> Iterator[StandInApi]:
    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            answer = api.take(Request(self.command, url.path, query, dict(self.headers), body))
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in ({"Content-Length": str(len(data))} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_DELETE = reply

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        api = StandInApi(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()


def a_job(identifier: str = "syn-1", status: str = "running", **changes: Any) -> dict[str, Any]:
    """A job as the API shows it."""
    kind, unit = ("synthesis", "images") if identifier.startswith("syn") else ("training", "epochs")
    return {
        "id": identifier,
        "kind": kind,
        "status": status,
        "attempt": 1,
        "spec": {"name": None},
        "progress": {"done": 0, "total": 200, "unit": unit, "per_second": None, "eta_seconds": None},
        "metrics": {},
        "result": None,
        "error": None,
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": None,
        "finished_at": None,
        "links": {},
    } | changes


def a_teacher(identifier: str = "tch-1", **changes: Any) -> dict[str, Any]:
    """A teacher as the API shows it."""
    return {
        "status": "ready",
        "shared": False,
        "id": identifier,
        "name": "net",
        "created_at": "2026-01-01T00:00:00Z",
        "architecture": "resnet10t",
        "model_args": {},
        "num_classes": 2,
        "in_chans": 1,
        "image_size": 32,
        "mean": [0.5],
        "std": [0.5],
        "class_names": None,
        "sha256": "0" * 64,
        "bytes": 1000,
        "parameters": 250,
        "batch_norm_layers": 9,
        "refused_input_sizes": [],
        "weights": None,
    } | changes


def a_dataset(identifier: str = "ds-1", shards: Sequence[dict[str, Any]] = (), **changes: Any) -> dict[str, Any]:
    """A dataset as the API shows it."""
    return {
        "status": "ready",
        "shared": False,
        "id": identifier,
        "name": "digits",
        "created_at": "2026-01-01T00:00:00Z",
        "num_samples": 2,
        "num_classes": 1,
        "image_size": 32,
        "in_chans": 1,
        "classes": [{"index": 0, "name": "0", "samples": 2}],
        "shards": [{"samples": 2, "classes": {"0": 2}} | shard for shard in shards],
        "prefix": f"datasets/{identifier}",
    } | changes


def a_model(identifier: str = "mdl-1", **changes: Any) -> dict[str, Any]:
    """A model as the API shows it."""
    return {
        "shared": False,
        "id": identifier,
        "name": None,
        "created_at": "2026-01-01T00:00:00Z",
        "architecture": "dearkd_micro_patch8_32",
        "num_classes": 2,
        "in_chans": 1,
        "image_size": 32,
        "class_names": None,
        "accuracy": None,
        "dataset": "ds-1",
        "teacher": None,
        "run": "run-1",
        "spec": {},
        "files": [],
    } | changes
