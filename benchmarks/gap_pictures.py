"""Pictures of made images: beside the real ones that they come nearest to, and as points of the teacher's features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

# isort: split
import matplotlib.pyplot as plt
import numpy as np
from gap_giveaway import feature_distance, nearest, pixel_distance
from sklearn.decomposition import PCA
from torch import Tensor

COLUMNS = 8
CLASSES = 4
POINTS = 500
"""The most real images of a class that are drawn."""


@dataclass(frozen=True)
class Shown:
    """Images (N, C, H, W), uint8, labels (N,), and the teacher's features (N, D)."""

    name: str
    images: Tensor
    labels: Tensor
    features: Tensor


def nearest_picture(made: Shown, training: Tensor, training_features: Tensor, path: Path) -> None:
    """The eight made images that come nearest to a training image, which stands below: by pixels, then by features."""
    measures = (
        ("pixels, L2 distance", nearest(made.images, training, pixel_distance)),
        ("teacher's features, 1 − cosine", nearest(made.features, training_features, feature_distance)),
    )
    figure, axes = plt.subplots(4, COLUMNS, figsize=(COLUMNS * 1.25, 6.4), squeeze=False)
    figure.set_layout_engine("constrained", hspace=0.12, rect=(0, 0.03, 1, 0.97))
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (name, (distances, places)) in enumerate(measures):
        upper, lower = axes[2 * number], axes[2 * number + 1]
        for column, index in enumerate(distances.argsort()[:COLUMNS].tolist()):
            upper[column].set_title(f"{distances[index]:.3f}", fontsize=8)
            for axis, image in ((upper[column], made.images[index]), (lower[column], training[places[index]])):
                shown = image.permute(1, 2, 0).squeeze(2).numpy()
                axis.imshow(shown, cmap="gray" if shown.ndim == 2 else None, vmin=0, vmax=255)
        for axis, side in ((upper[0], f"{made.name}, by {name}"), (lower[0], "nearest training image")):
            text = axis.text(0, -0.06, side, transform=axis.transAxes, fontsize=8, va="top")
            text.set_in_layout(False)  # it may be longer than its column
    figure.savefig(path, dpi=130)
    plt.close(figure)


def features_picture(made: Sequence[Shown], real: Shown, names: Sequence[str], path: Path) -> None:
    """Made images of the first classes over the real ones, in the first two components of the real ones of the class.

    A row for each class, a column for each set of images. Axes of a row are the same, so that spread can be compared.
    """
    classes = sorted(set.intersection(*({*shown.labels.tolist()} for shown in (*made, real))))[:CLASSES]
    figure, axes = plt.subplots(
        len(classes),
        len(made),
        figsize=(3.2 * len(made), 2.7 * len(classes)),
        sharex="row",
        sharey="row",
        layout="constrained",
        squeeze=False,
    )
    for row, label in enumerate(classes):
        theirs = real.features[real.labels == label].numpy()
        pca = PCA(n_components=2, random_state=0).fit(theirs)
        share = pca.explained_variance_ratio_.sum()
        for axis, shown in zip(axes[row], made, strict=True):
            mine = shown.features[shown.labels == label].numpy()
            spread = np.sqrt(pca.transform(mine).var(axis=0).sum() / pca.transform(theirs).var(axis=0).sum())
            axis.scatter(*pca.transform(theirs[:POINTS]).T, s=5, color="0.75", label="real", linewidths=0)
            axis.scatter(*pca.transform(mine).T, s=9, color="C0", label="made", linewidths=0)
            axis.set_title(f"{names[label]}: {shown.name}, spread {spread:.2f} of real", fontsize=8)
            axis.tick_params(labelsize=7)
        axes[row][0].set_ylabel(f"2nd of two components ({share:.0%})", fontsize=7)
    axes[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)
