"""A run of several processes on this machine, which torchrun starts."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

import psutil
from pydantic import BaseModel, TypeAdapter

from dearkd.specs.base import STORED
from dearkd_trainer.service.group import Group
from dearkd_trainer.service.inputs import RunInputs

HELLO = TypeAdapter(tuple[int, int])
"""The first line: a rank and the number of its process."""


class RankConfig(BaseModel):
    """The arguments of each process of the group, as a file that it reads when it starts."""

    inputs: RunInputs
    device: Literal["cpu", "cuda"]
    threads: int
    socket: Path
    """The Unix socket to connect to; messages are lines of JSON, both ways."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file; the names in it are from storage and were checked, if ever, when they were posted."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"), context=STORED)


class ProcessGroup(Group):
    """The processes of a run on this machine; they live while the block runs.

    Args:
        inputs: of the run; its spec has the number of processes.
        device: `cuda` or `cpu`.
        threads: CPU threads of each process.
        check: called while no message comes; what it raises ends the run (`HandBack`: after a last checkpoint).
        note: called with lines for the job's log, such as the traceback of a failed process.
    """

    launcher = "torchrun"

    def __init__(
        self,
        inputs: RunInputs,
        *,
        device: Literal["cpu", "cuda"],
        threads: int,
        check: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        super().__init__(inputs.spec.processes, inputs.directory, check=check, note=note)
        self.inputs = inputs
        self.device: Literal["cpu", "cuda"] = device
        self.threads = threads

    def _listen(self, folder: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "socket"))
        listener.listen(self.processes)
        return listener

    def _launch(self, folder: Path) -> subprocess.Popen[bytes]:
        config = RankConfig(inputs=self.inputs, device=self.device, threads=self.threads, socket=folder / "socket")
        path = folder / "rank.json"
        path.write_text(config.model_dump_json(), encoding="utf-8")
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", str(self.processes)),
                *("-m", "dearkd.imports", "dearkd_trainer.service.rank", str(path)),
            ],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONSAFEPATH": "1"},
            start_new_session=True,
        )

    def _admit(self, connection: socket.socket, hello: bytes) -> int:
        rank, pid = HELLO.validate_json(hello)
        with suppress(psutil.NoSuchProcess):  # gone already, as the end of its connection will show
            self._processes.append(psutil.Process(pid))
        return rank
