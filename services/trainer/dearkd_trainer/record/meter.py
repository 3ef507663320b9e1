"""The measurements of an epoch's steps: losses, time and memory."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dearkd.errors import Diverged

STEPS_BETWEEN_READINGS = 50
"""Steps between two readings of the losses from the device; a run that has diverged stops there."""


class EpochMeter:
    """Collects the loss terms of an epoch's steps, read from the device now and then, and the epoch's times.

    Time counts from the first step's wait for its images, so without the evaluation and storing of the epoch before.

    Args:
        first_step: of the epoch, counted from the run's beginning.
        names, seen: `state` from a checkpoint: the terms' names, and their values at each earlier step of the epoch.
    """

    def __init__(self, first_step: int, names: Sequence[str] = (), seen: Sequence[Sequence[float]] = ()) -> None:
        self.first_step = first_step
        self._names = list(names)
        self._unread: list[Tensor] = []
        self._rows = [list(row) for row in seen]
        self._began: float | None = None
        self._paused = 0.0
        self._waited = 0.0
        self._images = 0

    @property
    def steps(self) -> int:
        """The number of steps done in this epoch."""
        return len(self._rows) + len(self._unread)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent inside as waiting for images."""
        began = time.perf_counter()
        if self._began is None:
            self._began = began
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's time, such as that of a checkpoint, out of the epoch's. Raises as `read` does."""
        self.read()  # what the device still computes is the steps' own
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._began is not None:
                self._paused += time.perf_counter() - began

    def add(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Add a step's terms, and its number of images."""
        self._names = list(terms)
        self._unread.append(torch.stack([term.detach() for term in terms.values()]))
        self._images += images
        if len(self._unread) == STEPS_BETWEEN_READINGS:
            self.read()

    def read(self) -> None:
        """Read the losses of the steps since the last reading from the device.

        Raises:
            Diverged: naming the first step whose loss was not finite.
        """
        values: list[list[float]] = torch.stack(self._unread).tolist() if self._unread else []
        for step, row in enumerate(values, self.first_step + len(self._rows)):
            if not all(map(math.isfinite, row)):
                terms = ", ".join(f"{name} {value}" for name, value in zip(self._names, row, strict=True))
                raise diverged(f"the loss left the finite numbers at step {step} ({terms})")
        self._rows += values
        self._unread.clear()

    def state(self) -> dict[str, list[str] | list[list[float]]]:
        """The state for a checkpoint; reads the losses first."""
        self.read()
        return {"names": self._names, "seen": self._rows}

    def means(self) -> dict[str, float]:
        """The means over the epoch's steps."""
        self.read()
        columns = zip(*self._rows, strict=True)
        return {name: math.fsum(column) / len(column) for name, column in zip(self._names, columns, strict=True)}

    def pace(self, teacher_seconds: float | None) -> dict[str, int | float]:
        """The speed of the epoch's steps in this process, without those before a restart.

        Args:
            teacher_seconds: time of the teacher's forwards; None without a teacher.

        Returns:
            `images_per_second`; `data_wait` and, with a teacher, `teacher_share`: fractions of the time in [0, 1].
            Empty if this process did no step.
        """
        if self._began is None:
            return {}
        seconds = time.perf_counter() - self._began - self._paused
        pace: dict[str, int | float] = {
            "images_per_second": self._images / seconds,
            "data_wait": self._waited / seconds,
        }
        if teacher_seconds is not None:
            pace["teacher_share"] = teacher_seconds / seconds
        return pace


class TeacherClock:
    """A clock of the teacher's forwards; on CUDA by events, so that no step waits for the answer."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the forward inside."""
        if self._cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def read(self) -> float:
        """Seconds since the last reading. On CUDA waits for the forwards to end."""
        if self._events:
            self._events[-1][1].synchronize()
        milliseconds = math.fsum(begin.elapsed_time(end) for begin, end in self._events)
        seconds, self._seconds = self._seconds + milliseconds / 1000, 0.0
        self._events.clear()
        return seconds


def json_row(row: Mapping[str, int | float]) -> dict[str, int | float | None]:
    """A row of metrics for JSON, with None for numbers that are not finite, as a loss on hard images may be."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def peak_memory(device: torch.device) -> int:
    """The peak memory of this process in bytes: on CUDA of the device, since `reset_peak_memory`; else of the machine,
    since the process began, because the kernel's count (`ru_maxrss`) cannot be reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: torch.device) -> None:
    """Start `peak_memory` anew on CUDA, so that an epoch after stage one shows the memory that its end freed."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def diverged(what: str) -> Diverged:
    return Diverged(f"{what}; no checkpoint was made since: try a lower optimizer.lr, or set optimizer.clip_grad")
