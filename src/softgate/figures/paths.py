"""Pictures of path stability: heat maps of every pair of epochs, and curves over epochs with controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgate.errors import require
from softgate.figures import style
from softgate.figures.panels import Line

ACROSS = 3
"""Panels in a row."""


@style.context()
def heat_maps(panels: Mapping[str, NDArray[np.float64]], epochs: Sequence[float], title: str = "") -> style.Chart:
    """Draws values in [-1, 1] of every pair of epochs, s up and t across: red above zero, blue below.

    Args:
        panels: Panel title to values [S, S], s first; NaN is grey.
        epochs: [S], for the axes.
        title: A line above all.

    Returns:
        The chart.
    """
    require(bool(panels), "heat maps: there is nothing to draw.")
    rows = -(-len(panels) // ACROSS)
    figure = style.figure(3.6 * ACROSS + 0.6, 3.4 * rows + 0.4, title)
    names = labelled(epochs)
    image: Any = None
    every = []
    for place, (name, values) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, ACROSS, place)
        axes.set_facecolor("0.8")
        axes.grid(visible=False)
        axes.spines[["top", "right"]].set_visible(True)
        image = axes.imshow(np.ma.masked_invalid(values), vmin=-1, vmax=1, cmap="RdBu_r", origin="lower")
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(len(names)), names, fontsize=7, rotation=90)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        if place > len(panels) - ACROSS:
            axes.set_xlabel("network of epoch t", fontsize=8)
        if place % ACROSS == 1:
            axes.set_ylabel("gates of epoch s", fontsize=8)
        if place <= len(panels) - ACROSS:
            axes.tick_params(labelbottom=False)  # the row below has them
        every.append(axes)
    figure.colorbar(image, ax=every, shrink=0.8)
    return style.Chart(figure)


@style.context()
def swap_curves(
    panels: Mapping[str, Mapping[str, tuple[str, Line]]], levels: Mapping[str, float] | None = None, title: str = ""
) -> style.Chart:
    """Draws panels of lines over epochs, the axis linear up to the first epoch after 0 and logarithmic from there.

    Args:
        panels: Panel title to line label to its kind and the line. Kinds "hard" and "soft" have their colour and a
            band; any other kind is a control, thin and dotted.
        levels: Panel title to where a horizontal line is drawn.
        title: A line above all.

    Returns:
        The chart.
    """
    filled = {name: lines for name, lines in panels.items() if lines}
    require(bool(filled), "swap curves: there is nothing to draw.")
    rows = -(-len(filled) // ACROSS)
    figure = style.figure(3.9 * ACROSS, 3.2 * rows + 0.8, title)
    for place, (name, lines) in enumerate(filled.items(), start=1):
        axes = figure.add_subplot(rows, ACROSS, place)
        every = sorted({x for _, line in lines.values() for x, _ in line.points})
        first = next((x for x in every if x > 0), 1.0)
        for label, (kind, line) in lines.items():
            _draw(axes, label, kind, line)
        if levels and name in levels:
            axes.axhline(levels[name], color="black", linewidth=0.7, alpha=0.5, label=f"settled: {levels[name]:g}")
        axes.set_xscale("symlog", linthresh=first, linscale=0.4)
        axes.set_xlim(-0.2 * first, 1.1 * every[-1])
        axes.set_xticks(every, labelled(every), rotation=90)
        axes.set_xticks([], minor=True)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("gates of epoch s", fontsize=8)
        axes.tick_params(labelsize=7)
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(4, len(handles)),
        fontsize=8,
    )
    return style.Chart(figure)


def labelled(epochs: Sequence[float]) -> list[str]:
    """Epochs as words for an axis."""
    return [f"{epoch:.2g}" if epoch < 1 else f"{epoch:.3g}" for epoch in epochs]


def _draw(axes: Any, label: str, kind: str, line: Line) -> None:
    points = [(x, y) for x, y in line.points if math.isfinite(y)]
    if not points:
        return
    x, y = zip(*points, strict=True)
    control = kind not in style.KINDS
    colour = style.KINDS.get(kind)
    drawing = {"linestyle": ":", "linewidth": 1.0} if control else {"marker": "o", "markersize": 2.5, "linewidth": 1.2}
    (drawn,) = axes.plot(x, y, label=label, color=colour or style.CONTROLS.get(kind, "grey"), **drawing)
    if len(line.low) == len(line.high) == len(line.points):
        ends = [[v for _, v in end] for end in (line.low, line.high)]
        axes.fill_between([at for at, _ in line.points], *ends, color=drawn.get_color(), alpha=0.12, linewidth=0)
