"""The same bytes on every run, where a library would rather be quick."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

CUBLAS_WORKSPACE = ":4096:8"
"""The value that `CUBLAS_WORKSPACE_CONFIG` must have before CUDA starts: with other workspaces cuBLAS may sum in any
order when several streams are at work."""


@contextmanager
def reproducible(device: torch.device | str, *, tf32: bool = True) -> Iterator[None]:
    """Use deterministic algorithms on a GPU inside the block; does nothing on a CPU.

    An operator without one warns and runs: few networks need such an operator, and stored files are identified by their
    sha256, not by how they were made.

    Args:
        device: where the work is.
        tf32: True if float32 convolutions may round their factors to TensorFloat-32 (torch's default): several times
            faster on GPUs that have it. Matrix products never may (torch's default too). Both are set here, so that
            they do not depend on the rest of the process.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    memory: Any = torch.utils.deterministic
    with ExitStack() as before:
        algorithms = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        before.callback(torch.use_deterministic_algorithms, algorithms, warn_only=warns)
        before.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        before.callback(setattr, memory, "fill_uninitialized_memory", memory.fill_uninitialized_memory)
        before.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32)
        )
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_float32_matmul_precision("highest")
        memory.fill_uninitialized_memory = False  # nothing here reads what was not written
        yield


def rounding(device: torch.device) -> dict[str, Any]:
    """The rounding that `reproducible` leaves to the device, for a shard's `made_with`."""
    return {"tf32_convolutions": True} if device.type == "cuda" else {}
