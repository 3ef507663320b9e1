"""The terms of a synthesis job's loss over its steps, as its latest events tell them."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from dearkd.jobs.records import JobRecords

EVENTS = 2500
"""Above the number of events that are kept of a job."""
POINTS = 400
"""A chart has no more points; of more every second one is left out, and so on."""
_PLACES = ("shard", "batch", "iteration", "restarts", "first_preview_seconds")


@dataclass(frozen=True, slots=True)
class Curves:
    """Values by name, and the steps at which they were told, counted over all batches."""

    steps: list[int]
    values: dict[str, list[float | None]]

    def chart(self) -> dict[str, Any]:
        """The form in which `charts.js` takes them."""
        series = [{"name": name, "values": values} for name, values in self.values.items()]
        return {"x_label": "optimisation step", "tables": [{"x": self.steps, "series": series}], "marks": []}

    def summary(self) -> list[dict[str, Any]]:
        """The first, the lowest and the latest value of each."""
        found = []
        for name, values in self.values.items():
            known = [value for value in values if value is not None]
            if known:
                found.append({"name": name, "first": known[0], "lowest": min(known), "latest": known[-1]})
        return found


def curves(records: JobRecords, identifier: str) -> Curves:
    """The curves of a job; of a long one only the end, since older events are dropped."""
    events, _ = records.events(identifier, limit=EVENTS)
    told = [event.data for event in events if event.type == "metrics"]
    at: dict[tuple[Any, Any], int] = {}
    steps: list[int] = []
    count = 0
    for row in told:
        place = (row.get("shard"), row.get("batch"))
        iteration = int(row.get("iteration") or 0)
        before = at.get(place, 0)
        # Several workers take turns in the events; a batch that starts again counts from its beginning.
        count += iteration - before if iteration >= before else iteration
        at[place] = iteration
        steps.append(count)
    kept = [*range(0, len(told), -(-len(told) // POINTS) or 1)]
    if told and kept[-1] != len(told) - 1:
        kept.append(len(told) - 1)
    # A forecast is told with the terms, as an object.
    figures = ((name, value) for row in told for name, value in row.items() if name not in _PLACES)
    names = list(dict.fromkeys(name for name, value in figures if isinstance(value, int | float)))
    return Curves([steps[i] for i in kept], {name: [_finite(told[i].get(name)) for i in kept] for name in names})


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and isfinite(value) else None
