"""A student as an ONNX file, checked against torch before anybody gets it (extra `onnx`)."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dearkd.errors import DearKDError, InvalidInput
from dearkd_trainer.model.graph import GraphInput, require_same, whole_model

OPSET = 18
"""The default, and the oldest: torch's exporter has implementations for no older one."""
INPUT, OUTPUT = "images", "logits"


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    in_chans: int,
    image_size: int,
    normalise: tuple[list[float], list[float]] | None = None,
    opset: int = OPSET,
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Write a model from images to logits (batch, num_classes).

    Args:
        model: on the CPU; it is left as it is.
        path: of the file, which holds the weights too.
        in_chans, image_size: of the images; the batch is of any size.
        normalise: mean and std, by which the graph normalises uint8 images (batch, image_size, image_size, in_chans)
            itself; None where it takes normalised ones (batch, in_chans, image_size, image_size).
        opset: version of ONNX's operators.
        metadata: text by name, for the file's `metadata_props`.

    Returns:
        The largest difference to torch's logits, over batches of 1 and 3 random images.

    Raises:
        InvalidInput: for an `opset` that cannot be written, or run, with the packages here.
        DearKDError: with code `not_installed`, or `not_equal` where the difference is over `TOLERANCE`.
    """
    try:
        import onnx
        import onnx.defs
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as missing:
        raise DearKDError(
            f"export to ONNX needs a package that is not installed here ({missing}): pip install 'dearkd[onnx]'",
            code="not_installed",
        ) from None
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise InvalidInput(
            f"opset is {opset}: torch's exporter begins at {OPSET}, and onnx {onnx.__version__} here ends at {newest}; "
            f"choose one of these, or leave it out for {OPSET}"
        )
    given = GraphInput(in_chans, image_size, normalise)
    plain = whole_model(model, given)
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            # Exporters trip over the fused kernel's strides, and over autograd functions.
            setattr(module, "fused_attn", False)  # noqa: B010  # modules are typed as holding tensors alone
    _write(plain, path, given.example(2), opset)
    proto = onnx.load(path)
    written = {entry.domain: entry.version for entry in proto.opset_import}.get("")
    if written != opset:  # the exporter's converter fails in silence, and leaves what it had
        raise _refused(
            opset, f"torch {torch.__version__} and onnx {onnx.__version__} here cannot convert the graph to it"
        )
    onnx.helper.set_model_props(proto, dict(metadata or {}))
    onnx.save(proto, path)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, which share no base
        raise _refused(opset, f"onnxruntime {onnxruntime.__version__} here does not read the file ({error})") from None

    def answer(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return require_same(answer, whole_model(model, given), given, whose="ONNX Runtime")


def _refused(opset: int, why: str) -> InvalidInput:
    return InvalidInput(f"opset is {opset}, but {why}: choose an older one; {OPSET}, the default, is the oldest")


def _write(model: nn.Module, path: Path, example: Tensor, opset: int) -> None:
    noisy = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in noisy]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        for logger in noisy:
            logger.setLevel(logging.CRITICAL)  # tracebacks of conversions that failed, which are looked at below
        try:
            torch.onnx.export(
                model,
                (example,),
                path,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)
