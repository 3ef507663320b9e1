"""The error for a batch that does not fit into a device's memory."""

from collections.abc import Callable

import torch

from dearkd.errors import OutOfMemory


def batch_too_large(
    images: int,
    input_size: int,
    device: torch.device,
    *,
    classes_per_batch: int,
    fits: Callable[[int], bool],
) -> OutOfMemory:
    """The error for a batch that does not fit, naming a size that does, found by halving.

    Args:
        images: number in the batch.
        input_size: the largest side at which the teacher sees them, in pixels.
        device: the one with too little memory.
        classes_per_batch: the spec's; `batch_size` must be a multiple of it.
        fits: True if a batch of so many images fits.
    """
    size = images // 2
    while size and not fits(size):
        size //= 2
    if size >= classes_per_batch:
        remedy = f"set batch_size to at most {size - size % classes_per_batch}"
    else:
        remedy = f"set batch_size and classes_per_batch to at most {size}"
    return OutOfMemory(
        f"a batch of {images} images of {input_size}×{input_size} pixels does not fit into the memory of {device}; "
        + (
            f"{size} of them do: {remedy}, or halve_batches to true"
            if size
            else "not even one does: free the device, or lower input_size"
        )
    )
