"""A bucket in memory, behind as much of S3 as dearkd speaks, that breaks one rule at a time on purpose.

It checks no signatures: a proxy before a real server cannot break rules, since what it alters is signed.
"""

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

FAULTS = (
    "stale",
    "same etag",
    "creates twice",
    "looks before it writes",
    "lists late",
    "whole for a range",
    "loses a part",
    "shows broken-off uploads",
    "copies nothing",
    "refuses signed URLs",
)


class StandInBucket:
    """The bucket `dearkd` at `endpoint`. `fault` is one of FAULTS, or empty: it keeps all rules then.

    What it may do without breaking one: `fault` "lists twice" has listings name everything a second time.
    """

    def __init__(self) -> None:
        self.fault = ""
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.listed: list[str] = []
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def store(self, key: str, data: bytes, *, once: bool) -> bool:
        """Write an object; False if it is there and is to be created."""
        if once and self.fault == "looks before it writes":
            there = key in self.objects
            time.sleep(0.1)
            if there:
                return False
        with self.lock:
            if once and key in self.objects and self.fault not in ("creates twice", "looks before it writes"):
                return False
            if not (self.fault == "stale" and key in self.objects):
                self.objects[key] = (data, time.time())
        return True


@contextmanager
def stand_in_bucket() -> Iterator[StandInBucket]:
    bucket = StandInBucket()
    thread = threading.Thread(target=bucket.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        bucket.server.shutdown()
        bucket.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    bucket: StandInBucket
    protocol_version = "HTTP/1.1"

    def log_message(self, *about: Any) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    @property
    def query(self) -> dict[str, str]:
        parts = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {name: values[0] for name, values in parts.items()}

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/dearkd").lstrip("/")

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def etag(self, data: bytes) -> str:
        return '"same"' if self.bucket.fault == "same etag" else f'"{hashlib.md5(data).hexdigest()}"'

    def modified(self, at: float) -> str:
        return formatdate(0 if self.bucket.fault == "same etag" else at, usegmt=True)

    def do_PUT(self) -> None:
        data = self.body()
        if "uploadId" in self.query:
            if (parts := self.bucket.uploads.get(self.query["uploadId"])) is None:
                return self.answer(404)  # given up already
            parts[int(self.query["partNumber"])] = data
            return self.answer(200, ETag=self.etag(data))
        source = self.headers.get("x-amz-copy-source")
        if source is not None:
            data = self.bucket.objects[unquote(source).removeprefix("/").removeprefix("dearkd/")][0]
            data = b"" if self.bucket.fault == "copies nothing" else data
            self.bucket.store(self.key, data, once=False)
            return self.answer(200, f"<CopyObjectResult><ETag>{self.etag(data)}</ETag></CopyObjectResult>".encode())
        once = self.headers.get("If-None-Match") == "*"
        if not self.bucket.store(self.key, data, once=once):
            return self.answer(412)
        return self.answer(200, ETag=self.etag(data))

    def do_POST(self) -> None:
        body = self.body()
        if "delete" in self.query:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self.bucket.objects.pop(unescape(key), None)
            told = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return self.answer(200, f"<DeleteResult>{told}</DeleteResult>".encode())
        if "uploads" in self.query:
            upload = f"upload-{len(self.bucket.uploads)}"
            self.bucket.uploads[upload] = {}
            about = f"<Bucket>dearkd</Bucket><Key>{escape(self.key)}</Key><UploadId>{upload}</UploadId>"
            text = f"<InitiateMultipartUploadResult>{about}</InitiateMultipartUploadResult>"
            return self.answer(200, text.encode())
        parts = [data for _, data in sorted(self.bucket.uploads.pop(self.query["uploadId"]).items())]
        data = b"".join(parts[1:] if self.bucket.fault == "loses a part" else parts)
        self.bucket.store(self.key, data, once=False)
        text = f"<CompleteMultipartUploadResult><ETag>{self.etag(data)}</ETag></CompleteMultipartUploadResult>"
        return self.answer(200, text.encode())

    def do_DELETE(self) -> None:
        if "uploadId" in self.query:
            parts = self.bucket.uploads.pop(self.query["uploadId"])
            if self.bucket.fault == "shows broken-off uploads":
                self.bucket.store(self.key, b"".join(parts.values()), once=False)
        else:
            self.bucket.objects.pop(self.key, None)
        self.answer(204)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "list-type" in self.query:
            return self.list()
        if "X-Amz-Signature" in self.query and self.bucket.fault == "refuses signed URLs":
            return self.answer(403)
        if self.key not in self.bucket.objects:
            return self.answer(404)
        data, at = self.bucket.objects[self.key]
        headers = {"ETag": self.etag(data), "Last_Modified": self.modified(at)}
        asked = self.headers.get("Range")
        if asked is None or self.bucket.fault == "whole for a range":
            return self.answer(200, data, Content_Length=str(len(data)), **headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(len(data), int(last or len(data)) + 1)
        return self.answer(206, data[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(data)}", **headers)

    def list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        now = sorted(self.bucket.objects)
        shown = self.bucket.listed if self.bucket.fault == "lists late" else now
        self.bucket.listed = now
        found, folders = "", set()
        for key in shown:
            if not key.startswith(prefix) or key not in self.bucket.objects:
                continue
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            data = self.bucket.objects[key][0]
            found += (
                f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>{escape(self.etag(data))}</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        found += "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
        found *= 2 if self.bucket.fault == "lists twice" else 1
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        self.answer(200, text.encode(), Content_Type="application/xml")
