"""The check of a teacher's BatchNorm statistics against its weights. Images are made from nothing else."""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm

MAX_MEAN_SQUARE = 1e4
"""Bounds for a layer's normalised activations on noise: the mean square of the median channel [our choice].

Where statistics and weights belong together it is about 1. Measured on noise: at most 5 in all layers of ImageNet's
EfficientNet-Lite0 at 32 to 224 px, and 100 in CNNs of five families trained on digits (RegNet's; on white noise alone
up to 5e3, hence several kinds). With weights scaled by 10, or as int8 holds them, it is 8e5 and more.
"""
MIN_MEAN_SQUARE = 1e-6
"""The same where the running variance has grown above the 1 that it starts from. Below, it proves nothing: untrained
weights let activations vanish from layer to layer, to 1e-12."""


def require_possible(layers: Sequence[tuple[str, BatchNorm]]) -> None:
    """Check that the running statistics could be those of any data.

    Raises:
        InvalidInput: at `/weights`, naming the layer, if they are of no floating-point type of 16 bits or more, or a
            variance is negative, or all of a layer's are zero.
    """
    for name, layer in layers:
        for which in ("running_mean", "running_var"):
            dtype = cast(Tensor, getattr(layer, which)).dtype
            if not dtype.is_floating_point or dtype.itemsize < 2:
                raise InvalidInput.at(
                    "/weights", f"{name}.{which} is of type {str(dtype).removeprefix('torch.')}: use float32"
                )
        variance = cast(Tensor, layer.running_var)
        # A dead channel of a trained network may well have a variance of zero; a layer of them was never trained.
        if (variance < 0).any() or not (variance > 0).any():
            raise InvalidInput.at("/weights", f"{name}.running_var must be positive, but is zero or negative")


NEVER_UPDATED = (
    "the BatchNorm statistics of the teacher are those that every network begins with (means 0, or variances all "
    "alike): it was trained in eval mode, or not at all, or they were reset, and there is next to nothing in it that "
    "images could be made to match; run its training images through it in training mode, and save it again"
)


def never_updated(layers: Sequence[tuple[str, BatchNorm]]) -> bool:
    """Tell whether no layer has ever seen an image in training mode. It may know its task all the same.

    Of images no network has means of exactly 0 in all layers, nor variances alike in all channels of each: so a half of
    the statistics that was reset tells it too, and variances of 1 − ε, with which a layer changes nothing.
    """
    means = [cast(Tensor, layer.running_mean) for _, layer in layers]
    variances = [cast(Tensor, layer.running_var) for _, layer in layers]
    return not any(mean.any() for mean in means) or all(bool((one == one[0]).all()) for one in variances)


def check_statistics(teacher: nn.Module, layers: Sequence[tuple[str, BatchNorm]], spec: TeacherSpec) -> None:
    """Compare every layer's running statistics with its activations on noise of the teacher's image size.

    Args:
        teacher: in eval mode.
        layers: its BatchNorm layers with statistics, with their names.
        spec: what images it takes.

    Raises:
        InvalidInput: at `/weights`, naming the first layer whose running variance is zero for a channel that is not
            dead, or whose statistics are off by orders of magnitude; or if the teacher answers all noise alike.
    """
    parameter = next(teacher.parameters())
    probes = [probe.to(parameter) for probe in _noises(spec)]
    found, answers = zip(*(_activations(teacher, layers, probe) for probe in probes), strict=True)
    for name, layer in layers:
        if name not in found[0]:  # only training runs it, as the auxiliary classifiers of GoogLeNet
            continue
        variance = cast(Tensor, layer.running_var)
        for channel in (variance == 0).nonzero()[:, 0].tolist():
            varies = found[0][name].variance[channel].item()
            if varies > layer.eps:
                raise InvalidInput.at(
                    "/weights",
                    f"{name}.running_var[{channel}] is zero, as of a dead channel, but on noise its input has a "
                    f"variance of {varies:.3g}: the statistics are not those of these weights",
                )
        squares = [on_probe[name].square for on_probe in found if name in on_probe]
        lowest, highest = min(squares), max(squares)  # a network may well see one kind of noise as it sees no image
        grown = variance.median().item() > 1
        if (
            math.isnan(lowest)
            or math.isnan(highest)
            or lowest > MAX_MEAN_SQUARE
            or (grown and highest < MIN_MEAN_SQUARE)
        ):
            off = lowest if not highest < MIN_MEAN_SQUARE else highest
            raise InvalidInput.at(
                "/weights",
                f"{name}: on noise its input, less running_mean, has a mean square of {off:.2g} times running_var, and "
                "about 1 is what trained networks have: the statistics are not those of these weights (were they "
                "quantised, scaled, or taken from another file?)",
            )
    if all(torch.equal(logits, logits[:1].expand_as(logits)) for logits in answers):
        raise InvalidInput.at(
            "/weights",
            f"the teacher gives {sum(map(len, answers))} different images of noise the same logits, as if it saw none "
            "of them: are its classifier's or its BatchNorm layers' weights zero?",
        )


class _Activations:
    """Figures of a layer's input: variance of each channel, and the median channel's mean square once normalised."""

    def __init__(self, layer: BatchNorm, values: Tensor) -> None:
        by_channel = values.detach().transpose(0, 1).flatten(1).double()
        mean, variance = cast(Tensor, layer.running_mean).double(), cast(Tensor, layer.running_var).double()
        self.variance = by_channel.var(dim=1, correction=0)
        alive = variance > 0
        square = (by_channel - mean[:, None]).square().mean(dim=1) / (variance + layer.eps)
        self.square = square[alive].median().item()


def _activations(
    teacher: nn.Module, layers: Sequence[tuple[str, BatchNorm]], x: Tensor
) -> tuple[dict[str, _Activations], Tensor]:
    """Figures of each layer's input for some images, and the logits."""
    found: dict[str, _Activations] = {}

    def look(name: str, layer: BatchNorm, values: Tensor) -> None:
        found[name] = _Activations(layer, values)

    handles = [
        layer.register_forward_pre_hook(lambda module, inputs, name=name: look(name, module, inputs[0]))
        for name, layer in layers
    ]
    try:
        with torch.no_grad():
            logits: Tensor = teacher(x)
    finally:
        for handle in handles:
            handle.remove()
    return found, logits


def _noises(spec: TeacherSpec) -> list[Tensor]:
    """White and smooth noise, of standard deviation 1 as normalised images have it, and smooth noise of all pixels."""
    side = spec.image_size
    shape = (2, spec.in_chans, side, side)
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(shape, generator=generator)
    coarse = torch.randn(*shape[:2], *[max(2, side // 8)] * 2, generator=generator)
    smooth = F.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return [white, smooth, ((0.5 + 0.25 * smooth).clamp(0, 1) - mean) / std]
