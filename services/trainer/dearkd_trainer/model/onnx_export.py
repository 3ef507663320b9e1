"""A student as an ONNX file, checked against torch before anybody gets it (extra `onnx`)."""

import copy
import warnings
from pathlib import Path

import torch
from torch import nn

from dearkd.errors import DearKDError

OPSET = 18
TOLERANCE = 1e-4
"""The largest difference between ONNX Runtime's logits and torch's that is let through."""
INPUT, OUTPUT = "images", "logits"


def export_onnx(model: nn.Module, path: Path, *, in_chans: int, image_size: int) -> float:
    """Write a model of normalised images (batch, in_chans, image_size, image_size) to logits (batch, num_classes).

    Args:
        model: on the CPU; it is left as it is.
        path: of the file, which holds the weights too.
        in_chans, image_size: of the input; the batch is of any size.

    Returns:
        The largest difference to torch's logits, over batches of 1 and 3 random images.

    Raises:
        DearKDError: with code `not_installed`, or `not_equal` where the difference is over `TOLERANCE`.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as missing:
        raise DearKDError(
            f"export to ONNX needs a package that is not installed here ({missing}): pip install 'dearkd[onnx]'",
            code="not_installed",
        ) from None
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            # Exporters trip over the fused kernel's strides, and over autograd functions.
            setattr(module, "fused_attn", False)  # noqa: B010  # modules are typed as holding tensors alone
    example = torch.randn(2, in_chans, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            plain,
            (example,),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference = 0.0
    for batch in (1, 3):
        images = torch.randn(batch, *example.shape[1:], generator=torch.Generator().manual_seed(batch))
        (answer,) = session.run([OUTPUT], {INPUT: images.numpy()})
        with torch.no_grad():
            expected = copy.deepcopy(model).eval()(images)
        difference = max(difference, (torch.from_numpy(answer) - expected).abs().max().item())
    if not difference <= TOLERANCE:  # not a number is no parity either
        raise DearKDError(
            f"ONNX Runtime's logits differ from torch's by {difference:.2g}, over {TOLERANCE:g}: nothing was exported; "
            "please report it, with the versions of torch, onnx and onnxruntime",
            code="not_equal",
        )
    return difference
