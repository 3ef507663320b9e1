"""A student as an archive of `torch.export`, which torch alone loads and runs."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dearkd_trainer.model.graph import GraphInput, require_same, whole_model


def export_pt2(model: nn.Module, path: Path, given: GraphInput, *, files: Mapping[str, str] | None = None) -> float:
    """Write a model as a program from images to logits (batch, num_classes), for any batch size.

    `torch.export.load(path).module()` is the program again.

    Args:
        model: on the CPU; it is left as it is.
        path: of the file, which holds the weights too; it ends in `.pt2`.
        given: its images.
        files: text by name, which the archive holds besides.

    Returns:
        The largest difference to the model's logits.

    Raises:
        DearKDError: with code `not_equal` where the difference is over `TOLERANCE`.
    """
    whole = whole_model(model, given)
    program = torch.export.export(whole, (given.example(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files=dict(files or {}))
    return require_same(torch.export.load(path).module(), whole, given, whose="the exported program")
