"""Line charts as SVG inside a page, drawn by matplotlib in colours that the page's style decides."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Points = Sequence[tuple[float, float]]

LINES = 8
"""The colours for lines that the page's style has: `--line-1` to `--line-8`."""
MOST_POINTS = 400
"""A line has no more points; of more every second one is left out, and so on."""
MAGNITUDE = 20
ROLES = {"--ink": "#010101", "--soft": "#020202", "--grid": "#030303", "--panel": "#040404"} | {
    f"--line-{number}": f"#0505{number:02x}" for number in range(1, LINES + 1)
}
"""Variables of the page's style, and the colours that stand for them while matplotlib draws."""


def line_chart(
    key: str,
    title: str,
    lines: Mapping[str, Points],
    *,
    across: str = "epoch",
    up: str = "",
    logarithmic: bool = False,
    switch: float | None = None,
    dots: Points = (),
) -> Markup:
    """A chart, as wide as what it stands in; empty if no line has a point.

    Args:
        key: starts the ids of the chart's parts, and so is of one chart of a page alone.
        title: for who does not see it.
        lines: by name, the points of each.
        across, up: the axes' labels.
        logarithmic: True for logarithms upwards, where all values are above 0 and differ by more than `MAGNITUDE`.
        switch: where stage two begins.
        dots: single points, without a line.
    """
    lines = {name: _thinned(points) for name, points in lines.items() if points}
    if not lines:
        return Markup()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dearkd"}):
        figure = Figure(figsize=(5.6, 3.3), layout="constrained")
        axes = figure.subplots()
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        if dots:
            xs, ys = zip(*dots, strict=True)
            axes.scatter(xs, ys, color=ROLES["--soft"], s=12, label="heads", zorder=2)
        for number, (name, points) in enumerate(lines.items()):
            marker = "o" if len(points) < 40 else None
            colour = ROLES[f"--line-{number % LINES + 1}"]
            axes.plot(*zip(*points, strict=True), label=name, color=colour, linewidth=1.6, marker=marker, markersize=3)
        values = [value for points in lines.values() for _, value in points]
        if logarithmic and min(values) > 0 and max(values) > MAGNITUDE * min(values):
            axes.set_yscale("log")
        if switch is not None:
            axes.axvline(switch, color=ROLES["--soft"], linestyle=":", linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(across, color=ROLES["--soft"])
        axes.set_ylabel(up, color=ROLES["--soft"])
        axes.grid(color=ROLES["--grid"], linewidth=0.8)
        axes.tick_params(which="both", colors=ROLES["--soft"])
        for name, spine in axes.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(ROLES["--soft"])
        if len(lines) > 1 or dots:
            legend = axes.legend(fontsize=9, labelcolor=ROLES["--ink"], framealpha=0.85, edgecolor=ROLES["--grid"])
            legend.get_frame().set_facecolor(ROLES["--panel"])
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _inline(file.getvalue(), key, title)


def _thinned(points: Points) -> Points:
    return points[:: -(-len(points) // MOST_POINTS)]


def _inline(svg: str, key: str, title: str) -> Markup:
    """The drawing as an element of a page: without a head, and with ids that no other drawing has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{key}-", svg)
    for variable, colour in ROLES.items():
        svg = svg.replace(colour, f"var({variable})")
    _, _, rest = svg.partition(">")
    box = re.search(r'viewBox="[-0-9. ]+"', svg)
    assert box is not None
    label = Markup('<svg class="chart" role="img" aria-label="{}" ').format(title)
    head = f'{label}xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]}>'
    return Markup(head + rest)
