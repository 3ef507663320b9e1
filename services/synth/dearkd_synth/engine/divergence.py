"""A flag on the device that is looked at without waiting for it: how a loss that left all bounds is noticed."""

from typing import Protocol, Self

import torch
from torch import Tensor


class Event(Protocol):
    """Of `torch.cuda.Event`, what is needed."""

    def record(self) -> None: ...

    def query(self) -> bool: ...


class DelayedFlag:
    """Once raised it stays raised, so that no step is missed however late it is seen.

    On a GPU it is copied to pinned memory behind the step, and looked at in the next one that finds the copy done. On a
    CPU, where nothing waits, it is seen at once.

    Args:
        raised: a bool scalar on the device.
        seen: a bool scalar in memory to which it is copied.
        event: tells when a copy is done; None: at once.
    """

    def __init__(self, raised: Tensor, seen: Tensor, event: Event | None) -> None:
        self._raised = raised
        self._seen = seen
        self._event = event
        self._under_way = False

    @classmethod
    def on(cls, device: torch.device) -> Self:
        """One that is not raised."""
        raised = torch.zeros((), dtype=torch.bool, device=device)
        if device.type != "cuda":
            return cls(raised, raised, None)
        return cls(raised, torch.zeros((), dtype=torch.bool, pin_memory=True), torch.cuda.Event())

    def raise_if(self, condition: Tensor) -> None:
        """Raise it where the bool scalar `condition` on the device is true."""
        self._raised.logical_or_(condition)

    def poll(self) -> bool:
        """Whether it is raised, as far as is known without waiting: on a GPU, of a step some time ago."""
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
        """Whether it is raised, after all that was asked of the device."""
        return bool(self._raised)
