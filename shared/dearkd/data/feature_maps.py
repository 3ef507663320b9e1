"""Feature maps: images of a dataset as points, by the first two principal components of the teacher's features."""

from pydantic import BaseModel, ConfigDict, Field

FEATURE_MAP = "feature_map.json"
POINTS = 600
"""The most points of a map."""


class MapPoint(BaseModel):
    """An image of the dataset."""

    model_config = ConfigDict(frozen=True)

    key: str
    """Its sample's."""
    label: int
    teacher_label: int
    """The class that the teacher predicts."""
    margin: float
    """The label's logit minus the largest other."""
    x: float = Field(ge=-1, le=1)
    y: float = Field(ge=-1, le=1)


class FeatureMap(BaseModel):
    """`feature_map.json`."""

    model_config = ConfigDict(frozen=True)

    explained_variance: tuple[float, float]
    """The fractions of the features' variance along x and along y."""
    points: list[MapPoint] = Field(max_length=POINTS)
