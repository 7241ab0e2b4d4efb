"""Which classes are taken for which: a matrix of counts, coloured by the share of each true class."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from softgate.errors import require
from softgate.figures import fonts, style

COUNTED = 30
"""With more classes than this, cells have no counts, and the worst pairs are listed instead."""

LISTED = 4.4
"""Inches for the list of the worst pairs."""

LONGEST = 22
"""Letters of a class's name beside the matrix; a longer one ends in an ellipsis."""


@style.context()
def confusion(
    counts: NDArray[np.int64],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    listed: Sequence[str] = (),
) -> style.Chart:
    """Draws a confusion matrix.

    Args:
        counts: [R, C] images of true class r that were taken for class c.
        rows: R names of true classes.
        columns: C names of predicted classes.
        title: A line above all.
        listed: Lines beside the matrix, where there are more than `COUNTED` classes.

    Returns:
        The chart.

    Raises:
        SoftgateError: If there are not as many names as rows and columns.
    """
    fits = counts.shape == (len(rows), len(columns)) and counts.size > 0
    require(fits, f"confusion: counts {counts.shape} of {len(rows)} and {len(columns)} classes.")
    whole = counts.sum(1, keepdims=True)
    shares = np.divide(counts, whole, out=np.full(counts.shape, np.nan), where=whole > 0)
    few = max(counts.shape) <= COUNTED + 1
    side = max(3.0, (0.42 if len(rows) <= 12 else 0.34) * max(counts.shape)) if few else 6.0
    words = not few and len(listed) > 0
    figure = style.figure(side + (2.6 if few else 1.6) + (LISTED if words else 0), side + (1.8 if few else 0.6), title)
    grid = figure.add_gridspec(1, 2 if words else 1, width_ratios=[side + 1.6, LISTED] if words else None)
    axes = figure.add_subplot(grid[0])
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest", aspect="equal")
    axes.grid(visible=False)
    axes.set_xlabel("predicted class", fontsize=9)
    axes.set_ylabel("true class", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    axes.tick_params(labelsize=8)
    if few:
        shown, family = fonts.readable([*map(_short, rows), *map(_short, columns)])
        axes.set_xticks(range(len(columns)), shown[len(rows) :], rotation=90, fontfamily=family, parse_math=False)
        axes.set_yticks(range(len(rows)), shown[: len(rows)], fontfamily=family, parse_math=False)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                ink = "white" if shares[row, column] > 0.55 else "#333333"
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7, color=ink)
    if words:
        side_axes = figure.add_subplot(grid[1])
        side_axes.axis("off")
        lines = [line for each in listed for line in textwrap.wrap(each, 62, subsequent_indent="    ")]
        shown, family = fonts.readable(lines)
        text = "\n".join(["most often taken for another:", *shown])
        side_axes.text(
            0, 1, text, fontsize=8, va="top", transform=side_axes.transAxes, fontfamily=family, parse_math=False
        )
    return style.Chart(figure)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1].rstrip() + "…"
