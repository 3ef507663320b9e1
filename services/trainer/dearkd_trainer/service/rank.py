"""One process of a run's group, started by torchrun.

`python -m dearkd.imports dearkd_trainer.service.rank rank.json`.
"""

import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

from dearkd.errors import DearKDError, DiskFull
from dearkd.storage.objects import is_disk_full
from dearkd_trainer.data.world import join
from dearkd_trainer.service.process_group import RankConfig, as_json
from dearkd_trainer.train.trainer import Metrics


class ParentLink:
    """The connection to the process that watches over the group; when it closes, this process exits at once."""

    def __init__(self, config: RankConfig, rank: int) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(config.socket))
        self._send([rank, os.getpid()])
        self._replies: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.wants_checkpoint = threading.Event()
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def report(self, what: str, **more: Any) -> None:
        self._send({"what": what, **more})

    def report_and_wait(self, what: str, **more: Any) -> None:
        """Send a message, and wait until the parent has dealt with it."""
        self.report(what, **more)
        self._replies.get()

    def _send(self, message: Any) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        with suppress(OSError, ValueError), self._connection.makefile("rb") as lines:
            for line in lines:
                if json.loads(line) == "save":
                    self.wants_checkpoint.set()
                else:
                    self._replies.put(None)
        # The parent is gone: whatever this process does no longer counts.
        os._exit(1)


def train(config: RankConfig, parent: ParentLink, device: torch.device) -> dict[str, Any]:
    """Run the training in this process; returns its result as JSON. The trainer calls back in rank 0 only."""

    def on_step(step: int, steps: int) -> None:
        parent.report("step", step=step, steps=steps)
        if parent.wants_checkpoint.is_set():
            trainer.save()

    def on_epoch(row: Metrics) -> None:
        parent.report_and_wait("epoch", row=row)

    def on_checkpoint(path: Path) -> None:
        parent.report_and_wait("checkpoint", path=str(path))

    trainer = config.inputs.trainer(device, on_step=on_step, on_epoch=on_epoch, on_checkpoint=on_checkpoint)
    if trainer.world.rank == 0:
        parent.report_and_wait("begins", history=trainer.history, step=trainer.step, images=len(trainer.train_indices))
    return as_json(trainer.fit())


def main() -> None:
    # torchrun passes it on, but the parent decides, and a process that ends without a report counts as a death.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    config = RankConfig.read(Path(sys.argv[1]))
    torch.set_num_threads(config.threads)
    parent = ParentLink(config, int(os.environ["RANK"]))
    try:
        with join(config.device) as device:
            parent.report("ended", result=train(config, parent, device))
    except Exception as error:
        fail(parent, error)


def fail(parent: ParentLink, error: Exception) -> NoReturn:
    """Report an error, and exit at once: an orderly end could wait for the other processes for ever."""
    traceback.print_exc()
    if is_disk_full(error):
        error = DiskFull(f"no room is left on this worker's disk ({error}): make room and retry")
    known = error if isinstance(error, DearKDError) else None
    parent.report(
        "failed",
        type=type(error).__name__,
        message=known.message if known else str(error),
        code=known.code if known else None,
        errors=[asdict(found) for found in known.errors] if known else [],
        traceback=traceback.format_exc(),
    )
    sys.stderr.flush()
    os._exit(1)
