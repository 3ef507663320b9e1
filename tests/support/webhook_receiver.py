"""A receiver of webhooks on loopback: it keeps what it is sent, and answers as it is told."""

import json
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dearkd.storage.objects import Storage

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


NOBODY = {"url": "https://hooks.example/token", "secret": SECRET}
"""A webhook of which nothing must be found in what a job makes: other keys see that."""


def says_nothing_of(webhook: dict[str, Any], storage: Storage, prefix: str) -> bool:
    """Tell whether no object under a prefix names the target of a webhook, or its secret; there must be objects."""
    found = [storage.read(stored.key) for stored in storage.objects(prefix)]
    return bool(found) and not any(webhook[name].encode() in content for content in found for name in ("url", "secret"))


@dataclass(frozen=True)
class Received:
    """One request; names of headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """What came, and the answers to come: a status, a location for a redirect, or seconds to wait before 200."""

    port: int
    received: list[Received] = field(default_factory=list)
    answers: list[int | float | str] = field(default_factory=list)
    scheme: str = "http"

    def url(self, host: str = "127.0.0.1", path: str = "/hook?token=in-the-url") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def webhook(self, events: Sequence[str] | None = None, host: str = "127.0.0.1") -> dict[str, Any]:
        return {"url": self.url(host), "secret": SECRET} | ({} if events is None else {"events": [*events]})


@contextmanager
def receiving(certificate: Path | None = None) -> Iterator[Receiver]:
    """A receiver for as long as the context lasts; with a certificate (and its key, in one PEM file) by TLS."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append(Received(self.path, headers, body))
            answer = receiver.answers.pop(0) if receiver.answers else 204
            if isinstance(answer, float):
                time.sleep(answer)
            self.send_response(answer if isinstance(answer, int) else 302 if isinstance(answer, str) else 200)
            if isinstance(answer, str):
                self.send_header("location", answer)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(server.server_port)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        receiver.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
