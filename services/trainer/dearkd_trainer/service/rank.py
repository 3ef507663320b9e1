"""One process of a run's group, started by torchrun: `python -m dearkd_trainer.service.rank orders.json`."""

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
from dearkd_trainer.service.process_group import Orders, as_json
from dearkd_trainer.train.trainer import Metrics


class ParentLink:
    """A connection to the process that watches over the group: when that is gone, this one ends."""

    def __init__(self, orders: Orders, rank: int) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(orders.socket))
        self._send([rank, os.getpid()])
        self._heard: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.wants_checkpoint = threading.Event()
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def tell(self, what: str, **more: Any) -> None:
        self._send({"what": what, **more})

    def tell_and_wait(self, what: str, **more: Any) -> None:
        """Send, and wait until it was heard."""
        self.tell(what, **more)
        self._heard.get()

    def _send(self, message: Any) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        with suppress(OSError, ValueError), self._connection.makefile("rb") as lines:
            for line in lines:
                if json.loads(line) == "save":
                    self.wants_checkpoint.set()
                else:
                    self._heard.put(None)
        # In the middle of whatever it does: nothing of it counts any more.
        os._exit(1)


def train(orders: Orders, parent: ParentLink, device: torch.device) -> dict[str, Any]:
    """The run as this process sees it; the trainer calls back in rank 0 only."""

    def on_step(step: int, steps: int) -> None:
        parent.tell("step", step=step, steps=steps)
        if parent.wants_checkpoint.is_set():
            trainer.save()

    def on_epoch(row: Metrics) -> None:
        parent.tell_and_wait("epoch", row=row)

    def on_checkpoint(path: Path) -> None:
        parent.tell_and_wait("checkpoint", path=str(path))

    trainer = orders.inputs.trainer(device, on_step=on_step, on_epoch=on_epoch, on_checkpoint=on_checkpoint)
    if trainer.world.rank == 0:
        parent.tell_and_wait("begins", history=trainer.history, step=trainer.step)
    return as_json(trainer.fit())


def main() -> None:
    # torchrun passes it on, but the parent decides, and a process that ends without a report counts as a death.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    orders = Orders.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(orders.threads)
    parent = ParentLink(orders, int(os.environ["RANK"]))
    try:
        with join(orders.device) as device:
            parent.tell("ended", result=train(orders, parent, device))
    except Exception as error:
        fail(parent, error)


def fail(parent: ParentLink, error: Exception) -> NoReturn:
    """Report why, and end at once: the others may wait for this one for ever."""
    traceback.print_exc()
    if is_disk_full(error):
        error = DiskFull(f"no room is left on this worker's disk ({error}): make room and retry")
    known = error if isinstance(error, DearKDError) else None
    parent.tell(
        "failed",
        type=type(error).__name__,
        message=known.message if known else str(error),
        code=known.code if known else None,
        errors=[asdict(found) for found in known.errors] if known else [],
        traceback=traceback.format_exc(),
    )
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
