"""The charts of the page: logits over the steps of an ascent, and runs over their epochs."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from PIL import Image

from softgate.figures import style
from softgate.figures.panels import whole_epochs

ACROSS = 3
"""Panels in a row."""

_drawing = threading.Lock()
"""Held while a chart is drawn: matplotlib's settings are those of the whole process."""


def draw(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    beneath: str,
    cursor: float | None = None,
) -> Image.Image | None:
    """Draws panels of lines.

    Args:
        panels: Panel title to line name to (x, y) points; lines of one name have one colour. Panels without points are
            left out.
        beneath: What x counts.
        cursor: Where a vertical line stands in every panel.

    Returns:
        The picture, RGB; None where there is no point to draw.
    """
    filled = {name: lines for name, lines in panels.items() if any(lines.values())}
    if not filled:
        return None
    names = list(dict.fromkeys(line for lines in filled.values() for line in lines))
    across = min(ACROSS, len(filled))
    down = -(-len(filled) // across)
    with _drawing, style.context():
        figure = style.figure(4.0 * across, 2.9 * down + 0.22 * len(names))
        for place, (title, lines) in enumerate(filled.items(), start=1):
            axes = figure.add_subplot(down, across, place)
            for name, points in lines.items():
                if points:
                    x, y = zip(*points, strict=True)
                    colour = style.ARMS[names.index(name) % len(style.ARMS)]
                    axes.plot(x, y, marker="o", markersize=3, linewidth=1.5, label=name, color=colour)
            if cursor is not None:
                axes.axvline(cursor, color="#595959", linewidth=1, linestyle="--")
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(beneath)
            whole_epochs(axes)
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower left", fontsize=8)
        return style.picture(figure)
