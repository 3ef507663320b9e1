"""The table and the plot of gap.py's lines."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Line = dict[str, Any]
COLUMNS = (
    *("arm", "passes", "images", "epochs", "seeds", "top-1", "to real", "label", "judge", "precision", "recall"),
    *("closer in pixels", "in features"),
)


def groups(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that differ in their seeds alone, in the order of cells, arms and passes."""
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault((*place(line), line["arm"], line["passes"], line["setting"]), []).append(line)
    ordered = sorted(found, key=lambda key: (*key[:5], _mean(found[key], "top1") * -1))
    return [sorted(found[key], key=lambda line: int(line["seed"])) for key in ordered]


def place(line: Line) -> tuple[str, str, str, str]:
    """The lines that may be compared: a task, a teacher, and what judges."""
    return line["task"], line["family"], line["teacher"], line["part"]


def table(lines: Sequence[Line]) -> str:
    """For each cell, in Markdown: the arms' students, their gap to real images', and what can be said of the images.

    The gap is to the arm `real` of equally many images and epochs, seed by seed.
    """
    parts = []
    all_groups = groups(lines)
    for which in dict.fromkeys(place(line) for line in lines):
        mine = [group for group in all_groups if place(group[0]) == which]
        one = mine[0][0]
        seen = ", whose images the teacher has seen" if one["teacher_saw_part"] else ""
        parts += [
            f"{which[0]}, {which[1]} ({which[2]}): teacher {one['teacher_top1']:.1%}, judge {one['judge_top1']:.1%}, "
            f"on the {which[3]} part{seen}\n",
            f"| {' | '.join(COLUMNS)} |",
            "|---" * len(COLUMNS) + "|",
            *(_row(group, [line for other in mine for line in other]) for group in mine),
            "",
        ]
    return "\n".join(parts)


def real_of(line: Line, lines: Iterable[Line]) -> list[Line]:
    """The lines of real images with which one is compared: of all seeds."""
    alike = ("images", "epochs")
    return [
        other
        for other in lines
        if other["arm"] == "real" and place(other) == place(line) and all(other[n] == line[n] for n in alike)
    ]


def _row(group: list[Line], all_of_cell: list[Line]) -> str:
    one = group[0]
    real = {line["seed"]: line["top1"] for line in real_of(one, all_of_cell)}
    gaps = [100 * (line["top1"] - real[line["seed"]]) for line in group if line["seed"] in real]
    top1 = [100 * line["top1"] for line in group]
    gap = "–" if not gaps or one["arm"] == "real" else f"{statistics.fmean(gaps):+.1f}"
    if len(gaps) > 1 and one["arm"] != "real":
        gap += f" ({min(gaps):+.1f} to {max(gaps):+.1f})"
    shown = [
        one["arm"],
        one["passes"] or "–",
        one["images"],
        one["epochs"],
        len(group),
        f"{statistics.fmean(top1):.1f} ± {statistics.pstdev(top1):.1f}",
        gap,
        *(f"{_mean(group, name):.0%}" for name in ("teacher_accuracy", "judge_accuracy")),
        *(f"{_mean(group, name):.2f}" for name in ("precision", "recall")),
        *(
            f"{statistics.fmean(line[name]['closer'] for line in group):.1%}" if name in one else "–"
            for name in ("nearest_pixels", "nearest_features")
        ),
    ]
    return f"| {' | '.join(map(str, shown))} |"


def _mean(group: Iterable[Line], name: str) -> float:
    return statistics.fmean(line[name] for line in group)
