"""A time-lapse of noise becoming images: the first batch of a job, as an animated WebP beside its shards."""

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from dearkd.jobs.model import dataset_of
from dearkd.storage.catalog import Teacher
from dearkd.vision.sample_grid import draw_grid
from dearkd.work.attempt import Attempt
from dearkd_synth.service.live import CLASSES, EACH, SMALLEST_SIDE, shown_rows, take
from dearkd_synth.synthesised import Step

NAME = "timelapse.webp"
FRAMES = 24
KEPT_IMAGES = 2 * CLASSES * EACH
"""Images kept of each frame. More than are shown: with late labels (`unlabelled_iterations`) nobody knows before which
of them will be."""
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 150, 2500
QUALITY = 70


class Timelapse:
    """Frames of the batch that it sees, by the step and not by the clock, so that equal seeds give equal frames."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._frames: list[Tensor] = []
        self._labels: Sequence[int] | None = None
        self._moments: frozenset[int] = frozenset()

    def see(self, step: Step) -> None:
        """Keep a frame if one is due; cheap enough for every step. With a batch's first step it begins anew."""
        if step.shard != 0 or step.batch != 0 or step.camera is None:
            return
        if step.iteration == 1:
            self._frames.clear()
            self._moments = moments(step.iterations)
        if step.iteration not in self._moments:
            return
        rows = range(min(step.images, KEPT_IMAGES))
        snapshot = take(step.camera, rows, self._teacher)
        if snapshot is not None:
            self._frames.append(snapshot.images)
        self._labels = None if step.camera.labels is None else step.camera.labels[: len(rows)]

    def file(self) -> bytes | None:
        """The animation, a row for each class; None if no frame was seen."""
        if not self._frames:
            return None
        rows = shown_rows(self._labels, len(self._frames[-1]))
        labels = [row // EACH for row in rows] if self._labels is None else [self._labels[row] for row in rows]
        frames = [self._draw(frame[rows], torch.tensor(labels)) for frame in self._frames]
        held = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
        file = io.BytesIO()
        frames[0].save(
            file, "WEBP", save_all=True, append_images=frames[1:], duration=held, loop=0, quality=QUALITY, method=2
        )
        return file.getvalue()

    def _draw(self, images: Tensor, labels: Tensor) -> Image.Image:
        names = [self._teacher.class_name(label) for label in range(self._teacher.num_classes)]
        named = names if self._labels is not None else None
        return draw_grid(images, labels, rows=CLASSES, columns=EACH, names=named, smallest_cell=SMALLEST_SIDE)


def moments(iterations: int) -> frozenset[int]:
    """The iterations of which a frame is kept, from the first to the last: dense at first, where most changes."""
    frames = min(FRAMES, iterations)
    if frames == 1:
        return frozenset((1,))
    return frozenset(1 + round((iterations - 1) * (frame / (frames - 1)) ** 2) for frame in range(frames))


def store_timelapse(attempt: Attempt, timelapse: Timelapse) -> None:
    """Store the animation with the dataset to come; it only serves people: a failure to draw it is noted."""
    try:
        file = timelapse.file()
    except Exception as error:
        attempt.note(f"the time-lapse could not be drawn: {type(error).__name__}: {error}")
        return
    if file is not None:
        attempt.publish(lambda: attempt.storage.put(timelapse_key(attempt.job.id), file))


def timelapse_key(job: str) -> str:
    return f"datasets/{dataset_of(job)}/{NAME}"
