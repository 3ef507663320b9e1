"""Attention distances in rows of metrics: written by a run, read for its picture."""

from collections.abc import Iterable, Mapping, Sequence

ROW_PREFIX = "attention_distance_"


def to_row(layers: Sequence[float]) -> dict[str, float]:
    """Distances as fields of a row of metrics: `attention_distance_1` is the first layer's."""
    return {f"{ROW_PREFIX}{number}": distance for number, distance in enumerate(layers, 1)}


def recorded_distances(rows: Iterable[Mapping[str, int | float | None]]) -> dict[str, list[float]]:
    """The layers' distances that `to_row` put into rows of metrics, by a name that says after which epoch and stage."""
    found = {}
    for row in rows:
        layers: list[float] = []
        while (distance := row.get(f"{ROW_PREFIX}{len(layers) + 1}")) is not None:
            layers.append(float(distance))
        if layers:
            found[f"after epoch {row['epoch']} (stage {row['stage']})"] = layers
    return found
