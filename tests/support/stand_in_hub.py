"""A small real HTTP server that gives and takes files as the Hugging Face Hub does."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "a" * 40
TOKEN = "hf_of-a-writer"


@dataclass
class Pushed:
    """A repository that was made, as the hub has it after the last commit."""

    kind: str
    visibility: str
    files: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def stand_in_hub(models: Mapping[str, Mapping[str, bytes]], pushed: dict[str, Pushed] | None = None) -> Iterator[str]:
    """Serve the files of these models, by `owner/name`, and yield the hub's URL.

    With `pushed`, also take new repositories of the owner `me`, from who has `TOKEN`; safetensors go as large files.
    """
    repositories = {} if pushed is None else pushed
    large: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            path = urlsplit(self.path).path
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid credentials"})
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                self.create(json.loads(data))
            elif path.endswith("/preupload/main"):
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(data)["files"]
                ]
                self.answer(200, {"files": modes})
            elif path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    one | {"actions": {"upload": {"href": f"http://{self.headers['Host']}/large/{one['oid']}"}}}
                    for one in json.loads(data)["objects"]
                ]
                self.answer(200, {"transfer": "basic", "objects": objects})
            elif path.endswith("/commit/main"):
                self.commit("/".join(path.split("/")[3:5]), [json.loads(line) for line in data.splitlines()])
            else:
                self.answer(404, {"error": f"nothing is known of {path}"})

        def create(self, asked: dict[str, str | None]) -> None:
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if not name.startswith("me/"):
                self.answer(403, {"error": f"no rights to create {name}"})
                return
            kind = asked.get("type") or "model"
            repositories.setdefault(name, Pushed(kind, asked.get("visibility") or "public"))
            self.answer(200, {"url": f"http://{self.headers['Host']}/{'datasets/' * (kind == 'dataset')}{name}"})

        def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    repositories[name].files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repositories[name].files[value["path"]] = large[value["oid"]]
            self.answer(
                200,
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}",
                },
            )

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            oid = self.path.rpartition("/")[2]
            assert hashlib.sha256(data).hexdigest() == oid
            large[oid] = data
            self.answer(200, {})

        def answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

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
