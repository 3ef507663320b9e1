"""The map of a dataset's images by the teacher's features, as points of a drawing."""

from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from dearkd.data.feature_maps import FEATURE_MAP, FeatureMap
from dearkd.data.manifests import DatasetManifest
from dearkd.errors import NotFound
from dearkd_api.backend import Backend
from dearkd_api.dashboard.gallery import Cell, of_sample

WIDTH: Final = 720
MARGIN: Final = 12
MAX_BYTES: Final = 2**20
GOLDEN_ANGLE: Final = 137.508
"""Degrees between the hues of neighbouring classes: however many there are, neighbours differ."""


@dataclass(frozen=True, slots=True)
class Dot:
    """An image as a point; the colour of its class is `hue`."""

    x: float
    y: float
    label: int
    taken_for: int | None
    """The class that the teacher takes it for, if that is another."""
    margin: float
    cell: Cell


@dataclass(frozen=True, slots=True)
class Drawing:
    """Points in a drawing of `WIDTH` × `height` pixels."""

    dots: list[Dot]
    height: int
    explained: tuple[float, float]


def drawing(dataset: DatasetManifest, backend: Backend) -> Drawing | None:
    """The map of a dataset; None where it has none: it was registered, or made by an earlier version."""
    key = f"datasets/{dataset.id}/{FEATURE_MAP}"
    try:
        if backend.storage.size(key) > MAX_BYTES:
            return None
        found = FeatureMap.model_validate_json(backend.storage.read(key))
    except (NotFound, ValidationError):
        return None
    scale = WIDTH / 2 - MARGIN
    top = max((point.y for point in found.points), default=0.0)
    bottom = min((point.y for point in found.points), default=0.0)
    dots = [
        Dot(
            x=round(WIDTH / 2 + scale * point.x, 1),
            y=round(MARGIN + scale * (top - point.y), 1),
            label=point.label,
            taken_for=point.teacher_label if point.teacher_label != point.label else None,
            margin=point.margin,
            cell=cell,
        )
        for point in found.points
        if (cell := of_sample(dataset, point.key)) is not None
    ]
    return Drawing(dots, round(scale * (top - bottom)) + 2 * MARGIN, found.explained_variance)


def hue(label: int) -> float:
    """The hue of a class, in degrees."""
    return round((30 + label * GOLDEN_ANGLE) % 360, 1)
