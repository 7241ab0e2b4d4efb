"""Charts of a comparison, narrow enough for a phone: intervals, curves with bands, scatters. Pages hold them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softgate.figures import style
from softgate.figures.panels import Line, Range, clipped, whole_epochs, within

WIDTH = 3.9
"""Inches of a chart: 375 px, a phone's screen, at the usual 96 px an inch."""

STEEP = 100
"""Curves that span more than this factor belong on a log scale, such as the loss of an arm that started badly."""


@dataclass(frozen=True)
class Interval:
    """A row of a forest plot.

    Attributes:
        label: Its name.
        mean: The dot; NaN for none.
        low: Left end of the line.
        high: Right end.
        each: Small dots, such as one for each seed.
        claim: Whether it is drawn as one that is told apart.
    """

    label: str
    mean: float
    low: float
    high: float
    each: Sequence[float] = ()
    claim: bool = False


def colour(place: int) -> str:
    """The colour of an arm by its place."""
    return style.ARMS[place % len(style.ARMS)]


@style.context()
def forest(rows: Sequence[Interval], title: str, axis: str) -> style.Chart:
    """Differences with intervals around a line at zero.

    Args:
        rows: From the top.
        title: Above.
        axis: What the values are, below.
    """
    figure, axes = _chart(0.75 + 0.42 * len(rows), title)
    axes.axvline(0, color="#888888", linewidth=1)
    for place, row in enumerate(rows):
        ink = "#d1495b" if row.claim else "#444444"
        axes.plot(row.each, [place + 0.24] * len(row.each), "|", color=ink, markersize=5, alpha=0.7)
        if math.isfinite(row.low) and math.isfinite(row.high):
            axes.plot((row.low, row.high), (place, place), color=ink, linewidth=2, solid_capstyle="butt")
        if math.isfinite(row.mean):
            axes.plot(row.mean, place, "o", color=ink, markersize=6)
        axes.text(0, place - 0.3, row.label, transform=axes.get_yaxis_transform(), fontsize=9, va="center")
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_yticks([])
    axes.spines[["left"]].set_visible(False)
    axes.set_xlabel(axis, fontsize=9)
    axes.margins(x=0.08)
    return style.Chart(figure)


def steep(values: Sequence[float]) -> bool:
    """Whether values belong on a log scale: all are above 0, and they span more than a factor of `STEEP`."""
    return len(values) > 0 and min(values) > 0 and max(values) > STEEP * min(values)


@style.context()
def curves(
    lines: Mapping[str, Line],
    places: Mapping[str, int],
    title: str,
    axis: str = "epoch",
    log: bool = False,
    possible: Range = (None, None),
) -> style.Chart:
    """Lines with bands.

    Args:
        lines: Name to line; a name that ends in ", hard" is dashed.
        places: Name to the place that picks its colour.
        title: Above.
        axis: Below.
        log: Draw on a log scale.
        possible: The least and the greatest value that there can be: neither axis nor band goes beyond.
    """
    figure, axes = _chart(2.6, title)
    for name, line in lines.items():
        if not line.points:
            continue
        x, y = zip(*line.points, strict=True)
        ink, dashed = colour(places[name]), "--" if name.endswith(", hard") else "-"
        axes.plot(x, y, dashed, color=ink, linewidth=1.4, marker="o", markersize=2.5, clip_on=False, label=name)
        if line.low and len(line.low) == len(line.high) == len(line.points):
            ends = [clipped([value for _, value in side], possible) for side in (line.low, line.high)]
            axes.fill_between(x, *ends, color=ink, alpha=0.15, linewidth=0)
    if log:
        axes.set_yscale("log")
    else:
        within(axes, possible)
    axes.set_xlabel(axis, fontsize=9)
    if axis == "epoch":
        whole_epochs(axes)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    return style.Chart(figure)


@style.context()
def scatter(groups: Mapping[str, Sequence[tuple[float, float]]], title: str, across: str, up: str) -> style.Chart:
    """Dots in the colours of their groups.

    Args:
        groups: Name to (x, y).
        title: Above.
        across: What x is.
        up: What y is.
    """
    figure, axes = _chart(2.8, title)
    for place, (name, points) in enumerate(groups.items()):
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "o", color=colour(place), markersize=5, alpha=0.75, label=name)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    return style.Chart(figure)


def _chart(height: float, title: str) -> tuple[Figure, Any]:
    figure = style.figure(WIDTH, height)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    return figure, axes
