"""The table and the plot of gap.py's lines."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

# isort: split
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

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


def plot(lines: Sequence[Line], path: Path) -> None:
    """Accuracy against teacher passes an image, a panel for each cell; what costs no passes is a horizontal line."""
    arms = sorted({line["arm"] for line in lines} - {"real"})
    looks = {arm: (f"C{n % 10}", "osD^vPX*<>"[n % 10 - n // 10]) for n, arm in enumerate(arms)}
    looks["real"] = ("black", "")
    places = list(dict.fromkeys(place(line) for line in lines))
    figure, axes = plt.subplots(
        1, len(places), figsize=(1.5 + 4.2 * len(places), 4.4), layout="constrained", squeeze=False
    )
    entries = {}
    for axis, which in zip(axes[0], places, strict=True):
        mine = [group for group in groups(lines) if place(group[0]) == which]
        series: dict[tuple[Any, ...], list[list[Line]]] = {}
        for group in mine:
            series.setdefault((group[0]["arm"], group[0]["images"], group[0]["epochs"]), []).append(group)
        for (arm, _, _), some in series.items():
            colour, marker = looks[arm]
            entries[arm] = _draw(axis, some, colour, marker)
        axis.set_xscale("log")
        passes = sorted({group[0]["passes"] for group in mine} - {0})
        axis.set_xticks(passes, [str(n) for n in passes])
        axis.minorticks_off()
        axis.set_title(f"{which[0]}, {which[1]} ({which[3]})", fontsize=10)
        axis.set_xlabel("teacher passes an image")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("student's top-1, %")
    names = sorted(entries, key=lambda arm: (arm != "real", arm))
    figure.legend([entries[name] for name in names], names, loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw(axis: Axes, some: list[list[Line]], colour: str, marker: str) -> Any:
    """An arm's points, joined in the order of passes, with the seeds' standard deviation; or its line."""
    some = sorted(some, key=lambda group: int(group[0]["passes"]))
    found = [[100 * line["top1"] for line in group] for group in some]
    if not some[0][0]["passes"]:
        for values in found:
            drawn = axis.axhline(statistics.fmean(values), color=colour, linestyle="-" if colour == "black" else ":")
        return drawn
    means, spreads = [statistics.fmean(v) for v in found], [statistics.pstdev(v) for v in found]
    return axis.errorbar(
        [group[0]["passes"] for group in some], means, spreads, color=colour, marker=marker, capsize=3, markersize=5
    )


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
