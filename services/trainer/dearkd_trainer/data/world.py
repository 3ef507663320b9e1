"""The processes that train together: this one's rank, and joining the others.

Under `torchrun --nproc-per-node 2 train.py` a script joins and then trains as it would alone:

with join() as device:
    DearKDTrainer(spec, ..., device=device).fit()  # with processes=2 in its spec
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from dearkd.errors import InvalidInput

WAIT = timedelta(hours=2)
"""The time a process waits for the others: longer than rank 0 writes and reports. One that dies is noticed at once."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together; alone it is rank 0 of 1."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """The processes of the default process group, or this one alone if it joined none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def total(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over all processes of each of some scalars, on every one of them."""
        if self.size == 1:
            return dict(terms)
        values = torch.stack(list(terms.values()))
        dist.all_reduce(values)
        return dict(zip(terms, values.unbind(), strict=True))

    def gather(self, part: Tensor) -> Tensor:
        """The rows of all processes, on each: all have as many, and row i of rank r becomes row i·size + r."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)


@contextmanager
def join(device_type: str | None = None) -> Iterator[torch.device]:
    """Join the processes that torchrun started, over NCCL on CUDA and Gloo elsewhere; yields this one's device.

    Args:
        device_type: `cuda` or `cpu`; None means CUDA where there is one.

    Raises:
        InvalidInput: if the machine has fewer GPUs than processes on it.
    """
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device_type)
    if device_type == "cuda":
        place, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= there:
            raise InvalidInput.at("/processes", f"{os.environ['LOCAL_WORLD_SIZE']}, but this machine has {there} GPUs")
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=WAIT)
    yield device
    # Not after an error: to leave in good order takes all of them.
    dist.destroy_process_group()
