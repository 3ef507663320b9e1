"""The live picture of a job: the images at work as they are now, every few seconds, in one object beside the job.

The step only takes a snapshot. A second thread draws and stores it; of those that come while it is at work the newest
waits, and the others are dropped. Where several workers make one job, one of them shows its images and keeps the turn
for as long as it goes on, so that the picture does not jump between their shards.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

import torch

from dearkd.errors import Unavailable
from dearkd.jobs.deaths import holder
from dearkd.jobs.model import live_key
from dearkd.redis_client import job_key
from dearkd.storage.catalog import Teacher
from dearkd.vision.sample_grid import draw_grid, grid_file
from dearkd.work.attempt import Attempt
from dearkd_synth.snapshots import Camera, Snapshot
from dearkd_synth.synthesised import Step

log = logging.getLogger(__name__)

CLASSES, EACH = 10, 8
"""Rows of the picture, and images in each."""
SMALLEST_SIDE, LARGEST_SIDE = 32, 48
"""The sides in pixels to which it enlarges smaller images, and shrinks larger ones. Noise does not compress: 64 px in
colour would be a megabyte, and 45 ms of a core, every two seconds."""
TURN_SECONDS = 10
"""The time after its last picture in which no other worker shows its own; where pictures are rarer, three of them."""
FIRST_PICTURE_DAYS = 30
END_SECONDS = 5.0
"""The longest wait for a picture that is being stored when its shard is done."""


@dataclass(frozen=True, slots=True)
class LivePicture:
    """Images at work, and the step after which they were so."""

    snapshot: Snapshot
    step: Step


class LivePreviews:
    """Shows what one worker makes, a shard at a time. Whatever goes wrong with a picture ends no job."""

    def __init__(self) -> None:
        self._attempt: Attempt | None = None
        self._teacher: Teacher | None = None
        self._due = math.inf
        self._began = 0.0
        self._first_seconds: float | None = None
        self._of: tuple[str, int] | None = None
        """The job and the number of its attempt that the figures and the note are of."""
        self._noted = False
        self._changed = threading.Condition()
        self._waiting: LivePicture | None = None

    @property
    def figures(self) -> dict[str, float]:
        """The seconds from the job's first step to its first picture, once that is stored: for its metrics."""
        return {} if self._first_seconds is None else {"first_preview_seconds": self._first_seconds}

    @contextmanager
    def showing(self, attempt: Attempt, teacher: Teacher) -> Iterator[None]:
        """Show the images that `see` is told of inside of the block."""
        if attempt.settings.preview_seconds == 0:
            yield
            return
        if self._of != (attempt.job.id, attempt.job.attempt):
            self._of, self._first_seconds, self._noted = (attempt.job.id, attempt.job.attempt), None, False
            self._began = time.monotonic()
        self._attempt, self._teacher, self._waiting, self._due = attempt, teacher, None, 0.0
        over = threading.Event()  # of this thread alone, should it outlive the block
        thread = threading.Thread(
            target=self._run, args=(attempt, teacher, over), name=f"live-{attempt.unit}", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._due = math.inf
            with self._changed:
                over.set()
                self._changed.notify_all()
            thread.join(END_SECONDS)

    def see(self, step: Step) -> None:
        """Take a snapshot if one is due; cheap enough for every step."""
        if time.monotonic() < self._due or step.camera is None or self._attempt is None or self._teacher is None:
            return
        rows = shown_rows(step.camera.labels, step.images)
        snapshot = take(step.camera, rows, self._teacher)
        self._due = time.monotonic() + self._attempt.settings.preview_seconds
        if snapshot is None:
            return
        with self._changed:
            self._waiting = LivePicture(snapshot, step)
            self._changed.notify()

    def _run(self, attempt: Attempt, teacher: Teacher, over: threading.Event) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: over.is_set() or self._waiting is not None)
                if over.is_set():
                    return
                picture, self._waiting = self._waiting, None
            assert picture is not None
            try:
                self._show(attempt, teacher, picture)
            except Exception as error:  # it only serves people
                log.warning("the live picture of %s: %s", attempt.job.id, error)
                if not self._noted:
                    self._noted = True
                    said = error.message if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
                    attempt.note(f"the live picture could not be stored, and is tried again: {said}")

    def _show(self, attempt: Attempt, teacher: Teacher, picture: LivePicture) -> None:
        if not _has_turn(attempt):
            self._first_seconds = self._first_seconds or _first_seconds(attempt)
            return
        grid = draw(picture.snapshot, teacher)
        if not attempt.holds():
            return
        attempt.storage.put(live_key(attempt.job.id), grid)
        if self._first_seconds is None:
            self._first_seconds = _first_seconds(attempt, round(time.monotonic() - self._began, 3))
        step = picture.step
        where = {"shard": step.shard, "batch": step.batch, "iteration": step.iteration}
        about = {"live": True, "bytes": len(grid), "sha256": sha256(grid).hexdigest()}
        attempt.announce("preview", about | where | confidence(step) | self.figures)


def take(camera: Camera, rows: Sequence[int], teacher: Teacher) -> Snapshot | None:
    """A snapshot of some images; None if the device has no memory for it: no batch shall be halved for that."""
    try:
        return camera.take(rows, min(teacher.image_size, LARGEST_SIDE))
    except torch.OutOfMemoryError:
        return None


def shown_rows(labels: Sequence[int] | None, images: int) -> list[int]:
    """The places in a batch of the images that are shown: the first few of its first classes, or simply the first."""
    if labels is None:
        return [*range(min(images, CLASSES * EACH))]
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    return [place for label in sorted(places)[:CLASSES] for place in places[label][:EACH]]


def draw(snapshot: Snapshot, teacher: Teacher) -> bytes:
    """A PNG: a row for each class, with its name; rows without names while the images have no classes."""
    labels, names = snapshot.labels, [teacher.class_name(label) for label in range(teacher.num_classes)]
    if labels is None:
        labels, names = torch.arange(len(snapshot.images)) // EACH, []
    grid = draw_grid(
        snapshot.images,
        labels,
        rows=CLASSES,
        columns=EACH,
        names=names,
        smallest_cell=SMALLEST_SIDE,
        confidence=snapshot.confidence,
    )
    return grid_file(grid if teacher.in_chans == 3 else grid.convert("L"), compress_level=1)


def confidence(step: Step) -> dict[str, float]:
    """The teacher's probability of the labels, the geometric mean of the batch: of the cross-entropy as last read."""
    loss = step.losses.get("cross_entropy")  # there is none while images have no labels
    return {} if loss is None else {"confidence": math.exp(-loss)}


def _has_turn(attempt: Attempt) -> bool:
    """Take or keep the turn to show one's images, for a while."""
    redis, key, me = attempt.ledger.redis, f"{job_key(attempt.job.id)}:live", holder(os.getppid(), os.getpid())
    turn = max(TURN_SECONDS, math.ceil(3 * attempt.settings.preview_seconds))
    if redis.set(key, me, nx=True, ex=turn):
        return True
    return redis.get(key) == me.encode() and bool(redis.expire(key, turn))


def _first_seconds(attempt: Attempt, measured: float | None = None) -> float | None:
    """The seconds to the job's first picture, whichever worker stored it; `measured` if that is this one."""
    redis, key = attempt.ledger.redis, f"{job_key(attempt.job.id)}:first-preview:{attempt.job.attempt}"
    if measured is not None:
        redis.set(key, measured, nx=True, ex=FIRST_PICTURE_DAYS * 86400)
    found = redis.get(key)
    return None if found is None else float(found)
