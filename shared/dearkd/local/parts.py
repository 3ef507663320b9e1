"""The programs that `dearkd up` runs beside Redis: the API, synth workers, a trainer worker."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dearkd.jobs.queue import QueueName


@dataclass(frozen=True, slots=True)
class Part:
    """A program of the tree; `queues` are those on which it must listen before the tree is ready."""

    name: str
    command: tuple[str, ...]
    queues: tuple[QueueName, ...] = ()
    stdin: bytes | None = None
    directory: Path | None = None
    """Working directory; None: that of `up` itself, so that relative paths in the settings mean the same."""
    show_warnings: bool = True
    """True if its warnings go to the terminal too."""
    checks_keys: bool = False
    """True if it is started with the API keys that are configured; no other part is."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Settings of its own, where the environment of the tree does not have them."""


def _module(*arguments: str) -> tuple[str, ...]:
    # -P: a file in the user's folder must not shadow a module of ours.
    return (sys.executable, "-P", "-m", *arguments)


PARTS = (
    Part("api", _module("dearkd_api"), checks_keys=True),
    Part("synth", _module("dearkd.cli", "worker", "synth"), queues=("synth", "inspect")),
    Part("trainer", _module("dearkd.cli", "worker", "trainer"), queues=("train",)),
)


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_synth_workers(number: int) -> tuple[Part, ...]:
    """The parts with so many synth workers, which share the CPU's cores.

    A job is made by several where its `parallelism` says so. Small networks gain more by a second worker than by a
    second thread: 1.5 times the images on two cores (benchmarks/LOG.md).
    """
    if number == 1:
        return PARTS
    threads = {"DEARKD_TORCH_THREADS": str(max(1, usable_cores() // number))}
    synth = next(part for part in PARTS if part.name == "synth")
    workers = (
        replace(synth, name=f"synth-{i}" if i > 1 else "synth", environment=threads) for i in range(1, number + 1)
    )
    return (*(part for part in PARTS if part != synth), *workers)
