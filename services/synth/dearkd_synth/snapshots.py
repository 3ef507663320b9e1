"""Snapshots of a batch while it is optimised: taken only when somebody asks, and without a change to what comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from dearkd.specs import TeacherSpec
from dearkd.vision.images import quantise
from dearkd_synth.engine.resizing import resize


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Images of a batch as they were after a step, on the CPU."""

    images: Tensor
    """(N, C, side, side), uint8."""
    labels: Tensor | None
    """(N,), int64: the classes that they shall be of; None while they have none (`unlabelled_iterations`)."""
    confidence: Tensor | None
    """(N,): the teacher's probability of the labels, of the images as it was shown them in this step, before its
    change; None without labels."""


class Camera:
    """Takes snapshots of the batch that is optimised, inside of the block.

    Args:
        teacher: gives the range of pixels.
    """

    def __init__(self, teacher: TeacherSpec) -> None:
        self._teacher = teacher
        self._x: Tensor | None = None
        self._logits: Callable[[], Tensor] | None = None
        self.labels: Sequence[int] | None = None
        """The class of each image of the batch; None while they have none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._x = self._logits = None  # whoever keeps a step shall not keep the batch

    def aim(self, x: Tensor, logits: Callable[[], Tensor]) -> None:
        """Let the next snapshots be of the images (B, C, r, r), normalised, which are changed in place.

        Args:
            x: the images.
            logits: gives the teacher's (B, num_classes) of the latest step.
        """
        self._x, self._logits = x, logits

    @torch.no_grad()
    def take(self, rows: Sequence[int], side: int) -> Snapshot:
        """Images of the batch, by their place in it, `side` pixels high and wide; waits for the device.

        Raises:
            ValueError: once the batch is finished: steps are looked at while `on_step` runs.
        """
        if self._x is None or self._logits is None:
            raise ValueError("the batch is finished: take snapshots of it while on_step runs")
        images = torch.stack([self._x[row] for row in rows])
        pixels = quantise(resize(images, side), self._teacher).cpu()
        if self.labels is None:
            return Snapshot(images=pixels, labels=None, confidence=None)
        labels = torch.tensor([self.labels[row] for row in rows])
        logits = torch.stack([self._logits()[row] for row in rows]).float().cpu()
        confidence = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
        return Snapshot(images=pixels, labels=labels, confidence=confidence)
