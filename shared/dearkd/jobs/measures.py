"""Sums of what workers measure, in Redis, where `/metrics` of the API finds them.

Workers are other processes, perhaps on other hosts, and end with their task: nobody could ask them. So each sums up
what it measures, and what Redis is told anyway (the report of each second) takes the sums along. All are fields of one
hash, as many as the tables below have: no job, worker or host has one of its own.
"""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product

from dearkd.errors import Unavailable
from dearkd.redis_client import Pipeline

KEY = "dearkd:measures"


@dataclass(frozen=True, slots=True)
class Counter:
    """A sum that only grows, of each combination of its labels' values."""

    name: str
    help: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of labels, and all values that each can have."""

    @property
    def series(self) -> list[tuple[str, ...]]:
        """All combinations of values; one, without values, where there is no label."""
        return list(product(*self.labels.values()))

    def field(self, *values: str) -> str:
        """The field of a series in the hash; `lua/reclaim.lua` writes the same."""
        return "|".join((self.name, *values))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of observations by size, and their sum. In the hash a bucket has its own alone, not those below it."""

    name: str
    help: str
    bounds: tuple[float, ...]
    """Upper bounds of the buckets, growing; one more, without a bound, follows."""

    def bucket(self, place: int) -> str:
        """The field of a bucket in the hash."""
        return f"{self.name}|{self.bounds[place] if place < len(self.bounds) else 'inf'}"

    @property
    def total(self) -> str:
        """The field of the sum of all observations."""
        return f"{self.name}|sum"


SHARD_SECONDS = Histogram(
    "dearkd_shard_seconds",
    "Seconds from a worker's beginning of a shard to the shard in storage.",
    (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 7200, 14400, 43200),
)
STEP_SECONDS = Histogram(
    "dearkd_training_step_seconds",
    "Seconds of a step of a training run, the wait for its images included, evaluation and checkpoints not.",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
IMAGES = Counter(
    "dearkd_synthesised_images_total",
    "Images that workers have synthesised; one that is half optimised counts as half, rounded down over a shard.",
)
TRAINED_IMAGES = Counter(
    "dearkd_trained_images_total",
    "Images that runs have been trained on; those of a step that is done again count again.",
)
LEASES_LOST = Counter(
    "dearkd_leases_lost_total",
    "Units of work taken back from a worker: its process died, or fell silent for longer than its lease.",
    {"kind": ("synthesis", "training"), "reason": ("died", "silent")},
)
INSPECTOR_DEATHS = Counter(
    "dearkd_inspector_deaths_total",
    "Inspections that ended the process that was at them.",
)

COUNTERS = (IMAGES, TRAINED_IMAGES, LEASES_LOST, INSPECTOR_DEATHS)
HISTOGRAMS = (SHARD_SECONDS, STEP_SECONDS)


class Measures:
    """Sums of what this process measured since it last told Redis. Any thread may add to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: defaultdict[str, float] = defaultdict(float)

    def __bool__(self) -> bool:
        return bool(self._sums)

    def count(self, counter: Counter, *values: str, by: float = 1.0) -> None:
        """Add to a counter; `values` are those of its labels, in their order."""
        self._add({counter.field(*values): by})

    def observe(self, histogram: Histogram, value: float) -> None:
        """Add an observation to a histogram."""
        self._add({histogram.bucket(bisect_left(histogram.bounds, value)): 1.0, histogram.total: value})

    @contextmanager
    def told(self, pipe: Pipeline) -> Iterator[None]:
        """Let a pipeline that is sent in this block take the sums along. They stay if Redis cannot be reached.

        Where it was lost after it had taken them, they count twice.
        """
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
        for name, value in sums.items():
            pipe.hincrbyfloat(KEY, name, value)
        try:
            yield
        except Unavailable:
            self._add(sums)
            raise

    def _add(self, sums: Mapping[str, float]) -> None:
        with self._lock:
            for name, value in sums.items():
                self._sums[name] += value
