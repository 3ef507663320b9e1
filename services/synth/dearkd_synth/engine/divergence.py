"""A flag on the device that is read without waiting for the device: it notices a loss beyond its bound."""

from typing import Protocol, Self

import torch
from torch import Tensor


class Event(Protocol):
    """The part of `torch.cuda.Event` that is used here."""

    def record(self) -> None: ...

    def query(self) -> bool: ...


class DelayedFlag:
    """A flag that stays raised once it is raised, so that no step is missed however late it is read.

    On a GPU it is copied to pinned memory after a step, and read at the first later step that finds the copy done. On a
    CPU, where nothing has to wait, it is read at once.

    Args:
        raised: a bool scalar on the device.
        seen: a bool scalar in host memory, to which it is copied.
        event: reports when a copy is done; None on a CPU, where `raised` is read directly.
    """

    def __init__(self, raised: Tensor, seen: Tensor, event: Event | None) -> None:
        self._raised = raised
        self._seen = seen
        self._event = event
        self._under_way = False

    @classmethod
    def on(cls, device: torch.device) -> Self:
        """A flag on a device, not raised."""
        raised = torch.zeros((), dtype=torch.bool, device=device)
        if device.type != "cuda":
            return cls(raised, raised, None)
        return cls(raised, torch.zeros((), dtype=torch.bool, pin_memory=True), torch.cuda.Event())

    def raise_if(self, condition: Tensor) -> None:
        """Raise it where the bool scalar `condition` on the device is true."""
        self._raised.logical_or_(condition)

    def poll(self) -> bool:
        """True if it is known, without waiting, to be raised; on a GPU as of an earlier step."""
        if self._event is None:
            return bool(self._raised)
        if self._under_way and not self._event.query():
            return False
        if self._under_way and bool(self._seen):
            return True
        self._seen.copy_(self._raised, non_blocking=True)
        self._event.record()
        self._under_way = True
        return False

    def wait(self) -> bool:
        """Wait for all work queued on the device; True if it is raised."""
        return bool(self._raised)
