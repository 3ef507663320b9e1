"""A run over the nodes of a Ray cluster: Ray Train starts the processes, this process watches over them.

This machine is a node of the cluster, if only one without CPUs. A process of its own (`ray_driver`) has Ray Train start
the run's processes, each of which (`ray_rank`) fetches its inputs from storage and connects to this one. What rank 0
writes comes over that connection into the run's directory here, where it is stored and published as that of any run.
Nothing of Ray's outlives the driver, which ends with this process.
"""

import hmac
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, TypeAdapter

from dearkd.addresses import StorageAddress
from dearkd.errors import DearKDError, Unavailable
from dearkd.extras import require_extras
from dearkd.settings import Settings
from dearkd.specs.base import STORED
from dearkd_trainer.service.group import CAUSE_SECONDS, Group
from dearkd_trainer.service.inputs import StoredInputs
from dearkd_trainer.service.link import CONNECT_SECONDS, SILENCE_SECONDS, notice_silence

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody outside
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
}

HELLO = TypeAdapter(tuple[int, str])
"""The first line: a rank and the run's token."""


class RayConfig(BaseModel):
    """The arguments of the driver and of each process of the run."""

    inputs: StoredInputs
    cluster: str
    """The address of the cluster's head, host:port."""
    threads: int
    address: tuple[str, int]
    """Host and port to connect to; messages are lines of JSON, both ways, and files."""
    token: str
    """The word by which those who connect are known."""

    @classmethod
    def read(cls, text: str) -> Self:
        """Read the JSON; the names in it are from storage and were checked, if ever, when they were posted."""
        return cls.model_validate_json(text, context=STORED)


def require_ray(settings: Settings) -> str:
    """The address of the Ray cluster.

    Raises:
        DearKDError: `engine_unavailable`, if no cluster is named; `not_installed`, if Ray is not here.
    """
    if settings.ray_address is None:
        raise DearKDError(
            "engine ray needs DEARKD_RAY_ADDRESS, which this worker lacks: set it as for the API",
            code="engine_unavailable",
        )
    require_extras(["ray"], "engine ray")
    return settings.ray_address


class RayGroup(Group):
    """The processes of a run on a Ray cluster; they live while the block runs.

    Args:
        inputs: of the run; its spec has the number of processes. Where fewer find room, it is trained in fewer.
        directory: for what rank 0 writes.
        settings: of this process.
        check: called while no message comes; what it raises ends the run (`HandBack`: after a last checkpoint).
        note: called with lines for the job's log.
    """

    launcher = "the driver of the Ray cluster's processes"

    def __init__(
        self,
        inputs: StoredInputs,
        directory: Path,
        settings: Settings,
        *,
        check: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        super().__init__(inputs.spec.processes, directory, check=check, note=note)
        self.cluster = require_ray(settings)
        self.inputs = inputs.model_copy(update={"settings": _from_anywhere(inputs.settings)})
        self.threads = settings.torch_threads or 1
        # A machine that is cut off without a word is noticed that late.
        self.cause_seconds = CAUSE_SECONDS + SILENCE_SECONDS
        self._token = secrets.token_hex(16)

    def _listen(self, folder: Path) -> socket.socket:
        own = own_address(self.cluster)
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        listener = socket.create_server((own, 0), family=family, backlog=self.processes + 1)
        self._address: tuple[str, int] = listener.getsockname()[:2]
        return listener

    def _launch(self, folder: Path) -> subprocess.Popen[bytes]:
        config = RayConfig(
            inputs=self.inputs,
            cluster=self.cluster,
            threads=self.threads,
            address=self._address,
            token=self._token,
        )
        path = folder / "ray.json"
        path.write_text(config.model_dump_json(), encoding="utf-8")
        return subprocess.Popen(
            [sys.executable, "-m", "dearkd.imports", "dearkd_trainer.service.ray_driver", str(path)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT, "PYTHONSAFEPATH": "1"},
            start_new_session=True,
        )

    def _admit(self, connection: socket.socket, hello: bytes) -> int:
        rank, token = HELLO.validate_json(hello)
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            raise ValueError("none of this run's processes")
        notice_silence(connection)
        return rank


def own_address(cluster: str) -> str:
    """The address of this machine on its way to the cluster's head. Raises `Unavailable` if that does not answer."""
    host, _, port = cluster.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as connection:
            return str(connection.getsockname()[0])
    except (OSError, UnicodeError) as error:
        raise Unavailable(
            f"the head of the Ray cluster at {cluster} does not answer ({error}): see that it runs, and that "
            "DEARKD_RAY_ADDRESS names it"
        ) from error


def _from_anywhere(settings: dict[str, Any]) -> dict[str, Any]:
    """The same places, whatever the current folder."""
    found = {**settings, "cache_dir": str(Path(settings["cache_dir"]).absolute())}
    address = StorageAddress.parse(settings["storage_url"])
    if address.scheme == "file":
        found["storage_url"] = f"file://{address.folder}"
    return found
