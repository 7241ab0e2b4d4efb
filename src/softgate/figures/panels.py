"""Many small panels, one for each metric: lines over epochs with bands of uncertainty, or dots with intervals."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from softgate.errors import require
from softgate.figures import style

ACROSS = 4
"""Panels in a row."""
MARKERS = "osD^vP"
"""Of the series of dots, in turn."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line of (x, y) points; with the ends of an interval at the same x, a band around it."""

    points: Points
    low: Points = ()
    high: Points = ()


Range = tuple[float | None, float | None]
"""The least and the greatest value that there can be; None where there is no limit."""


@style.context()
def draw(
    panels: Mapping[str, Mapping[str, Line]],
    title: str = "",
    *,
    ranges: Mapping[str, Range] | None = None,
    best: float | None = None,
    axis: str = "epoch",
    cursor: float | None = None,
    colours: Mapping[str, str] | None = None,
) -> style.Chart:
    """Draws the panels in rows of at most four, each with its own y-axis.

    Args:
        panels: Panel title to line name to line. Panels without points are left out.
        title: A line above all.
        ranges: Panel title to what its values can be: no axis and no band goes beyond.
        best: The epoch that a dotted line marks in every panel.
        axis: What stands below, which x counts.
        cursor: Where a dashed line stands in every panel.
        colours: Line name to its colour, where a legend stands beside the chart; there is none in it then.

    Returns:
        The chart.

    Raises:
        SoftgateError: If there is no point at all.
    """
    filled = {name: lines for name, lines in panels.items() if any(line.points for line in lines.values())}
    require(bool(filled), "curves: there is no point to draw.")
    across = 2 if len(filled) == 4 else min(3, len(filled)) if len(filled) <= 6 else ACROSS
    rows = -(-len(filled) // across)
    small = len(filled) > 6
    figure = style.figure((3.2 if small else 4.2) * across, (2.5 if small else 2.9) * rows + 0.3, title)
    for place, (name, lines) in enumerate(filled.items(), start=1):
        axes = figure.add_subplot(rows, across, place)
        possible = (ranges or {}).get(name, (None, None))
        for label, line in lines.items():
            _plot(axes, label, line, possible, (colours or style.KINDS).get(label))
        if cursor is not None:
            axes.axvline(cursor, color="#595959", linewidth=1, linestyle="--", zorder=1)
        if best is not None:
            axes.axvline(best, color="#888888", linewidth=1, linestyle=":", zorder=1, label=f"best: epoch {best:g}")
        axes.set_title(name.replace("_", " "), fontsize=9 if small else 10)
        whole_epochs(axes)
        within(axes, possible)
        axes.tick_params(labelsize=7 if small else 8)
        if len(lines) > 1 and colours is None:
            axes.legend(fontsize=7 if small else 8)
    figure.supxlabel(axis, fontsize=9)
    return style.Chart(figure)


def within(axes: Any, possible: Range, across: bool = False) -> None:
    """Ends an axis where its values end; `across` is the horizontal one."""
    least, most = possible
    ends = axes.dataLim.intervalx if across else axes.dataLim.intervaly
    if not all(math.isfinite(end) for end in ends):  # no value is a number
        return
    low, high = axes.get_xlim() if across else axes.get_ylim()
    low, high = low if least is None else max(low, least), high if most is None else min(high, most)
    (axes.set_xlim if across else axes.set_ylim)(low, high)


def whole_epochs(axes: Any) -> None:
    """Whole numbers along the axis of epochs, which a single epoch is in the middle of."""
    low, high = axes.dataLim.intervalx
    if low <= high and high - low < 1:  # where no point is a number there are no limits
        axes.set_xlim(low - 0.5, high + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _plot(axes: Any, label: str, line: Line, possible: Range, colour: str | None) -> None:
    if not line.points:
        return
    x, y = zip(*line.points, strict=True)
    drawing: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.4, "label": label}
    # A point at the end of the axis is drawn whole.
    (drawn,) = axes.plot(x, y, color=colour, clip_on=False, zorder=3, **drawing)
    if len(line.low) == len(line.high) == len(line.points):
        low, high = (clipped([value for _, value in ends], possible) for ends in (line.low, line.high))
        axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)


def clipped(values: Sequence[float], possible: Range) -> list[float]:
    """Values, such as the ends of intervals, moved to where there can be any; NaN stays."""
    least, most = possible
    ends = -math.inf if least is None else least, math.inf if most is None else most
    return [value if math.isnan(value) else min(max(value, ends[0]), ends[1]) for value in values]


@dataclass(frozen=True)
class Dots:
    """One series of values with intervals, a dot for each row of a panel.

    Attributes:
        label: For the legend.
        rows: Row to (value, low, high); a row whose value is NaN has no dot.
        hollow: Rows whose dot is hollow.
        kind: Picks the colour, see `style.KINDS`; None is black.
    """

    label: str
    rows: Mapping[str, tuple[float, ...]]
    hollow: Collection[str] = ()
    kind: str | None = None


@style.context()
def dots(
    panels: Mapping[str, Sequence[Dots]],
    rows: Sequence[str],
    title: str = "",
    *,
    ranges: Mapping[str, Range] | None = None,
) -> style.Chart:
    """Draws panels of dots with intervals in rows of four: the values of each panel across, the rows down.

    Args:
        panels: Panel title to its series, the same ones in every panel. Panels without a value are left out.
        rows: Names of the rows, from the top.
        title: A line above all.
        ranges: Panel title to what its values can be: no axis and no interval goes beyond.

    Returns:
        The chart.

    Raises:
        SoftgateError: If there is no value at all.
    """
    filled = {
        name: series
        for name, series in panels.items()
        if any(math.isfinite(values[0]) for each in series for values in each.rows.values())
    }
    require(bool(filled), "alignment: there is no value to draw.")
    down, most = -(-len(filled) // ACROSS), max(len(series) for series in filled.values())
    height = 0.5 + len(rows) * max(0.2, 0.09 * most)
    figure = style.figure(3.0 * ACROSS + 1.2, height * down + 0.6 + 0.2 * most, title)
    for place, (name, series) in enumerate(filled.items()):
        axes = figure.add_subplot(down, ACROSS, place + 1)
        possible = (ranges or {}).get(name, (None, None))
        for turn, each in enumerate(series):
            _dot(axes, each, rows, 0.7 * ((turn + 0.5) / len(series) - 0.5), MARKERS[turn % len(MARKERS)], possible)
        within(axes, possible, across=True)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), rows if place % ACROSS == 0 else [""] * len(rows), fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    handles = [
        Line2D([], [], color=_colour(each.kind), marker=MARKERS[turn % len(MARKERS)], linewidth=1, label=each.label)
        for turn, each in enumerate(next(iter(filled.values())))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    return style.Chart(figure)


def _colour(kind: str | None) -> str:
    return style.KINDS.get(kind or "", "black")


def _dot(axes: Any, series: Dots, rows: Sequence[str], shift: float, marker: str, possible: Range) -> None:
    colour = _colour(series.kind)
    for place, row in enumerate(rows):
        value, low, high = series.rows.get(row, (math.nan,) * 3)
        if math.isfinite(value):
            if math.isfinite(low) and math.isfinite(high):
                axes.plot(clipped((low, high), possible), (place + shift,) * 2, color=colour, linewidth=1.2, alpha=0.6)
            face = "white" if row in series.hollow else colour
            axes.plot(value, place + shift, marker, color=colour, markerfacecolor=face, markersize=4, clip_on=False)
