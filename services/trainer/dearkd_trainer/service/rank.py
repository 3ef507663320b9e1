"""One process of a run's group, started by torchrun.

`python -m dearkd.imports dearkd_trainer.service.rank rank.json`.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch

from dearkd_trainer.data.world import join
from dearkd_trainer.record.checkpoint import BEST
from dearkd_trainer.service.group import as_json
from dearkd_trainer.service.inputs import FILES, RunInputs
from dearkd_trainer.service.link import ParentLink, failure
from dearkd_trainer.service.process_group import RankConfig
from dearkd_trainer.train.trainer import Metrics


def train(
    inputs: RunInputs,
    parent: ParentLink,
    device: torch.device,
    carry: Callable[[Iterable[str]], None] = lambda names: None,
) -> dict[str, Any]:
    """Run the training in this process; returns its result as JSON. The trainer calls back in rank 0 only.

    `carry` brings files of the run's directory to the parent, where that cannot see them, before they are reported.
    """

    def on_step(step: int, steps: int) -> None:
        parent.report("step", step=step, steps=steps)
        if parent.wants_checkpoint.is_set():
            trainer.save()

    def on_epoch(row: Metrics) -> None:
        parent.report_and_wait("epoch", row=row)

    def on_checkpoint(path: Path) -> None:
        carry(f"{path.parent.name}/{name}" for name in (path.name, BEST))
        parent.report_and_wait("checkpoint", path=str(path.relative_to(inputs.directory)))

    trainer = inputs.trainer(device, on_step=on_step, on_epoch=on_epoch, on_checkpoint=on_checkpoint)
    if trainer.world.rank == 0:
        begun = {"step": trainer.step, "images": len(trainer.train_indices), "processes": trainer.world.size}
        parent.report_and_wait("begins", history=trainer.history, **begun)
    result = trainer.fit()
    if trainer.world.rank == 0:
        carry(FILES)
    return as_json(result)


def main() -> None:
    # torchrun passes it on, but the parent decides, and a process that ends without a report counts as a death.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    config = RankConfig.read(Path(sys.argv[1]))
    torch.set_num_threads(config.threads)
    parent = ParentLink(config.socket, [int(os.environ["RANK"]), os.getpid()])
    try:
        with join(config.device) as device:
            parent.report("ended", result=train(config.inputs, parent, device))
    except Exception as error:
        fail(parent, error)


def fail(parent: ParentLink, error: Exception) -> NoReturn:
    """Report an error, and exit at once: an orderly end could wait for the other processes for ever."""
    traceback.print_exc()
    parent.report(**failure(error))
    sys.stderr.flush()
    os._exit(1)
