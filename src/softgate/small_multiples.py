"""Many small panels of lines over epochs, with bands of uncertainty: one picture for all metrics of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from softgate.errors import require

DPI = 100
ACROSS = 4
"""Panels in a row."""
COLOURS = {"hard": "#1f77b4", "soft": "#d62728", "train": "#7f7f7f", "val": "#2ca02c"}
"""Fixed colours, so that a line means the same in every panel."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line of (x, y) points; with the ends of an interval at the same x, a band around it."""

    points: Points
    low: Points = ()
    high: Points = ()


def draw(panels: Mapping[str, Mapping[str, Line]], title: str = "") -> Image.Image:
    """Draws the panels in rows of four, each with its own y-axis.

    Args:
        panels: Panel title to line name to line. Panels without points are left out.
        title: A line above all.

    Returns:
        The picture, RGB.

    Raises:
        SoftgateError: If there is no point at all.
    """
    filled = {name: lines for name, lines in panels.items() if any(line.points for line in lines.values())}
    require(bool(filled), "curves: there is no point to draw.")
    rows = -(-len(filled) // ACROSS)
    figure = Figure(figsize=(3.2 * ACROSS, 2.5 * rows + 0.3), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, lines) in enumerate(filled.items(), start=1):
        axes = figure.add_subplot(rows, ACROSS, place)
        for label, line in lines.items():
            _plot(axes, label, line)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=7)
    figure.supxlabel("epoch", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    canvas: Any = figure.canvas
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _plot(axes: Any, label: str, line: Line) -> None:
    if not line.points:
        return
    x, y = zip(*line.points, strict=True)
    colour = COLOURS.get(label)
    (drawn,) = axes.plot(x, y, marker="o", markersize=2.5, linewidth=1.3, label=label, color=colour)
    if len(line.low) == len(line.high) == len(line.points):
        low, high = ([value for _, value in ends] for ends in (line.low, line.high))
        axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)
