"""A real S3 server: OpenStack Swift with its S3 interface, on loopback.

It checks signatures (version 4), knows conditional create, ranges and multipart, and comes from PyPI whole. Account,
container, object and proxy server run in the foreground, with one replica on one device, which is a folder.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import obstore
import pytest
from obstore.store import S3Store

from dearkd.local.embedded_redis import HOST
from dearkd.settings import Settings

ACCESS_KEY, SECRET_KEY = "test:tester", "testing"
BUCKET = "dearkd"
READY_SECONDS = 60.0

_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
# A machine that is busy with other things must not bar the only device there is.
node_timeout = 60
conn_timeout = 20
log_level = WARNING
log_address = {folder}/no-syslog
"""

_BACKEND = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

_PROXY = """
[pipeline:main]
pipeline = catch_errors proxy-logging cache s3api tempauth bulk slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
error_suppression_limit = 1000000
node_timeout = 60
recoverable_node_timeout = 60
conn_timeout = 20
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
use = egg:swift#memcache
# There is none: what would be cached is asked for again.
memcache_servers = 127.0.0.1:9
connect_timeout = 0.05
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
storage_domain = s3.test
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""

# What `swift-ring-builder` does in three calls a ring, each of which imports swift anew.
_RINGS = """
import sys
from swift.common.ring.builder import RingBuilder
for kind, _, port in (pair.partition("=") for pair in sys.argv[1:]):
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(f"{kind}.ring.gz")
"""


@dataclass(frozen=True)
class S3Server:
    """A running server; its bucket `dearkd` exists."""

    endpoint: str

    def url(self, prefix: str) -> str:
        """A storage URL of its own for each prefix."""
        return f"s3://{BUCKET}/{prefix}"

    def settings(self, prefix: str, settings: Settings) -> Settings:
        """The same settings, with their storage under `prefix` in the bucket."""
        return settings.model_copy(update={"storage_url": self.url(prefix), "s3_endpoint": self.endpoint})


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server for the session; its keys are in the environment, where this process and its children find them."""
    with pytest.MonkeyPatch.context() as patch, swift(tmp_path_factory.mktemp("s3")) as server:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        yield server


@contextmanager
def swift(folder: Path) -> Iterator[S3Server]:
    """A server with its data in `folder`, for as long as the context lasts."""
    device = folder / "devices" / "d1"
    # Before the first request: one that finds no folder bars the device for a minute.
    device.mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = tests\nswift_hash_path_prefix = tests\n"
        "[storage-policy:0]\nname = single\ndefault = yes\n"
    )
    with ExitStack() as stack:
        ports = {kind: stack.enter_context(reserved_port()) for kind in ("account", "container", "object")}
        _make_rings(folder, ports)
        for kind, port in ports.items():
            text = _SERVER.format(port=port, folder=folder) + _BACKEND.format(kind=kind)
            stack.enter_context(_server(folder, kind, text))
        port = stack.enter_context(reserved_port())
        stack.enter_context(_server(folder, "proxy", _SERVER.format(port=port, folder=folder) + _PROXY))
        server = S3Server(f"http://127.0.0.1:{port}")
        make_bucket(server, folder)
        yield server


@contextmanager
def reserved_port() -> Iterator[int]:
    """A TCP port that only a server with `SO_REUSEPORT` can bind, and that the system gives to nobody who asks for any.

    eventlet, on which Swift runs, sets that option. Were the port merely free, a second server, of this process or of
    another, could be given it too: both would bind it in silence, and each get some of the other's requests.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((HOST, 0))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield holder.getsockname()[1]


def _make_rings(folder: Path, ports: dict[str, int]) -> None:
    """A ring of 2⁴ partitions for each kind of server, which listens on that port: all of them on the one device."""
    pairs = [f"{kind}={port}" for kind, port in ports.items()]
    subprocess.run([sys.executable, "-c", _RINGS, *pairs], cwd=folder, check=True, capture_output=True)


def _script(name: str) -> list[str]:
    return [sys.executable, str(Path(sys.executable).parent / name)]


@contextmanager
def _server(folder: Path, kind: str, configuration: str) -> Iterator[None]:
    path = folder / f"{kind}.conf"
    path.write_text(configuration)
    with (folder / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(
            [*_script(f"swift-{kind}-server"), str(path), "-v"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def make_bucket(server: S3Server, folder: Path) -> None:
    """Wait for a server that logs in `folder`, and make the bucket.

    obstore has no call for that, but signs a PUT of the empty key.
    """
    store = S3Store(
        BUCKET,
        endpoint=server.endpoint,
        region="us-east-1",
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        client_options={"allow_http": True},
    )
    url = obstore.sign(store, "PUT", "", timedelta(hours=1))
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            answer = httpx.put(url, timeout=READY_SECONDS, trust_env=False)
            if answer.status_code == 200 or "BucketAlready" in answer.text:
                return
            said = f"{answer.status_code}: {answer.text}"
        except httpx.HTTPError as error:
            said = repr(error)
        if time.monotonic() >= deadline:
            logs = "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"the S3 server did not come up: {said}\n{logs}")
        time.sleep(0.1)
