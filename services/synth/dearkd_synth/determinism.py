"""The same bytes on every run, where a library would rather be quick."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """Inside the block cuDNN chooses no algorithm that adds up in any order; a no-op without CUDA."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
