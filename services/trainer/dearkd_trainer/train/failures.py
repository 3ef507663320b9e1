"""Failures in the middle of torch, as errors that say what happened and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dearkd.errors import OutOfMemory
from dearkd.specs import TrainingSpec


class LoaderLost(RuntimeError):
    """A process that reads images was killed, or crashed: no fault of the run, which can go on from its checkpoint."""


@contextmanager
def explained(spec: TrainingSpec, device: torch.device) -> Iterator[None]:
    """Translate torch's failures inside the block into `DearKDError`s.

    Args:
        spec: of the run.
        device: that it computes on.

    Raises:
        OutOfMemory: naming what takes less, where the device or the machine has no memory left.
        LoaderLost: where a loader's process is gone.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(spec, device, error) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # torch's allocator on the CPU has no error of its own
            raise _out_of_memory(spec, device, error) from error
        # Raised wherever the main thread is when the signal comes, and of no type of its own either.
        if str(error).startswith("DataLoader worker (pid"):
            raise LoaderLost(str(error)) from error
        raise


def _out_of_memory(spec: TrainingSpec, device: torch.device, error: Exception) -> OutOfMemory:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    each = -(-spec.batch_size // (spec.processes * spec.grad_accum_steps))
    side = spec.student.image_size
    bfloat16 = ", precision bfloat16" if spec.precision == "float32" else ""
    return OutOfMemory(
        f"{device} has too little memory for {each} images of {side}×{side} pixels at once ({reason[0]}): set "
        f"grad_accum_steps above {spec.grad_accum_steps}, a smaller batch_size{bfloat16} or a smaller student"
    )
