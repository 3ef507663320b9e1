"""PNG pictures of an evaluation."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

MAX_NAMES = 40
"""Class names are written beside the confusion matrix up to this many."""


def confusion_picture(confusion: Sequence[Sequence[float]], class_names: Sequence[str]) -> bytes:
    """A confusion matrix, true classes down and predicted ones across; darker is more, rows sum to 1."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(confusion, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title="confusion")
    if len(class_names) <= MAX_NAMES:
        axes.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(class_names)), class_names, fontsize=8)
    figure.colorbar(image, label="share of the true class")
    return _png(figure)


def attention_distance_picture(
    series: Mapping[str, Sequence[float]], heads: Sequence[Sequence[float]] | None = None
) -> bytes:
    """Mean attention distance by layer, a line for each state of the model, such as before and after stage two.

    Args:
        series: by name, a distance in pixels for each layer: from `attention.attention_distance` of two models, or from
            `recorded_distances` of a run's rows.
        heads: of one state, a distance for each head of each layer, drawn as dots.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, layer in enumerate(heads or (), 1):
        axes.scatter(
            [number] * len(layer), layer, color="grey", alpha=0.6, s=14, label="heads" if number == 1 else None
        )
    for name, layers in series.items():
        axes.plot(range(1, len(layers) + 1), layers, marker="o", label=name)
    axes.set(xlabel="layer", ylabel="mean attention distance in pixels", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def attention_picture(pixels: Tensor, shares: Tensor, title: str) -> bytes:
    """An image as a model takes it, and beside it with the shares of its patches as a heat map over it.

    Args:
        pixels: (C, H, W), uint8, C of 1 or 3.
        shares: (rows, columns), none negative; the largest is the hottest.
        title: plain text.
    """
    image = pixels.permute(1, 2, 0).numpy()
    height, width = image.shape[:2]
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    for axes, is_hot in zip(figure.subplots(1, 2), (False, True), strict=True):
        axes.imshow(image if image.shape[2] == 3 else image[:, :, 0], cmap="gray", vmin=0, vmax=255)
        if is_hot:
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # the image's own, whatever the number of patches
            axes.imshow(shares.numpy(), cmap="inferno", alpha=0.6, vmin=0, extent=extent, interpolation="bilinear")
        axes.set_axis_off()
    figure.suptitle(title, parse_math=False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()
