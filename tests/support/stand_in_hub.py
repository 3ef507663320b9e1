"""A small real HTTP server that gives files as the Hugging Face Hub does."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "a" * 40


@contextmanager
def stand_in_hub(models: Mapping[str, Mapping[str, bytes]]) -> Iterator[str]:
    """Serve the files of these models, by `owner/name`, and yield the hub's URL."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            owner, _, rest = urlsplit(self.path).path.strip("/").partition("/")
            name, _, rest = rest.partition("/")
            files = models.get(f"{owner}/{name}")
            data = (files or {}).get(rest.removeprefix("resolve/main/"))
            self.send_response(404 if data is None else 200)
            if data is None:
                self.send_header("X-Error-Code", "RepoNotFound" if files is None else "EntryNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        do_GET = do_HEAD = reply

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
