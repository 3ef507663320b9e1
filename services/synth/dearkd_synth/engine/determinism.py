"""The same bytes on every run, where a library would rather be quick."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

CUBLAS_WORKSPACE = ":4096:8"
"""What `CUBLAS_WORKSPACE_CONFIG` has to be before CUDA starts: with workspaces of another size cuBLAS may add up in any
order when several streams are at work."""


@contextmanager
def reproducible(device: torch.device | str, *, tf32: bool = True) -> Iterator[None]:
    """Inside the block a GPU takes no algorithm that adds up in any order, where it has another; on a CPU: nothing.

    Where it has none it warns and goes on: few networks need such an operator, and what is stored counts by its sha256.

    Args:
        device: where the work is.
        tf32: whether convolutions in float32 may round their factors to TensorFloat-32, as is torch's default: several
            times faster on GPUs that have it. Products of matrices never do, as is torch's default too. Both are set,
            so that they do not depend on what the process has set for itself.
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
    """What `reproducible` leaves to the device, for the record of what made a shard."""
    return {"tf32_convolutions": True} if device.type == "cuda" else {}
