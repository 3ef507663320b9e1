"""The figures of training runs by epoch, in groups that share an axis."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

Row = Mapping[str, Any]

GROUPS: Final[Mapping[str, str]] = {
    "losses": "Losses",
    "accuracy": "Accuracy",
    "learning_rate": "Learning rate",
    "throughput": "Images per second",
    "attention": "Mean attention distance by layer, in pixels",
}
"""Groups by name, with the titles of their charts."""
POINTS: Final = 600
"""A chart has no more points of a run; of more every second one is left out, and so on."""
_NO_FIGURES: Final = frozenset({"id", "epoch", "stage", "step", "threads", "peak_memory", "data_wait", "teacher_share"})


def group_of(name: str) -> str | None:
    """The group that a figure of an epoch belongs to; None for one that has no chart."""
    if name in _NO_FIGURES:
        return None
    if "top1" in name or "top5" in name or name.endswith("calibration_error"):
        return "accuracy"
    if name.startswith("attention"):
        return "attention"
    return {"learning_rate": "learning_rate", "images_per_second": "throughput"}.get(name, "losses")


def figures(rows: Sequence[Row], group: str | None = None) -> list[str]:
    """The names of the figures that rows have, of one group or of all but the attention, which has a figure a layer."""
    names = dict.fromkeys(
        name
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    wanted = (group,) if group else tuple(name for name in GROUPS if name != "attention")
    return [name for name in names if group_of(name) in wanted]


def chart(runs: Mapping[str, Sequence[Row]], group: str) -> dict[str, Any]:
    """The form in which `charts.js` takes the figures of a group, of one run or of several that are compared.

    Args:
        runs: the rows of each run by its name; the first run's stages are marked.
        group: one of `GROUPS`.
    """
    if group == "attention":
        return {"x_label": "layer", "tables": _by_layer(runs), "marks": []}
    tables = []
    for name, rows in runs.items():
        kept = rows[:: -(-len(rows) // POINTS) or 1]
        prefix = f"{name}: " if len(runs) > 1 else ""
        series = [
            {"name": prefix + figure, "values": [_number(row.get(figure)) for row in kept]}
            for figure in figures(rows, group)
        ]
        if series:
            tables.append({"x": [int(row.get("epoch") or 0) for row in kept], "series": series})
    first = next(iter(runs.values()), ())
    return {"x_label": "epoch", "tables": tables, "marks": stages(first)}


def _by_layer(runs: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """The attention distance of each layer, a series for each epoch that was looked at: the ends of both stages."""
    tables = []
    for name, rows in runs.items():
        prefix = f"{name}: " if len(runs) > 1 else ""
        for row in rows:
            if layers := figures([row], "attention"):
                after = f"{prefix}after epoch {row.get('epoch')} (stage {row.get('stage')})"
                series = [{"name": after, "values": [_number(row[layer]) for layer in layers]}]
                tables.append({"x": [*range(1, len(layers) + 1)], "series": series})
    return tables


def stages(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The epochs at which stages begin, as marks of a chart; none where there is one stage."""
    marks: list[dict[str, Any]] = []
    before = None
    for row in rows:
        stage = row.get("stage")
        if stage != before and stage is not None:
            marks.append({"x": row.get("epoch") or 0, "label": f"stage {stage}"})
        before = stage
    return marks if len(marks) > 1 else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
