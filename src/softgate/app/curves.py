"""The charts of the page: logits over the steps of an ascent, and runs over their epochs."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from softgate.figures import panels, style

_drawing = threading.Lock()
"""Held while a chart is drawn: matplotlib's settings are those of the whole process."""


@dataclass(frozen=True)
class Curves:
    """Charts with one legend, each a picture of its own, so that a narrow page stands them below each other.

    Attributes:
        pictures: Title to chart.
        legend: Line name to its colour, in all of them.
    """

    pictures: Mapping[str, Image.Image]
    legend: Mapping[str, str]


def draw(
    lines: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], axis: str, cursor: float | None = None
) -> Curves:
    """Draws lines.

    Args:
        lines: Title of a chart to line name to (x, y) points. Charts without points are left out.
        axis: What x counts.
        cursor: Where a vertical line stands in every chart.
    """
    names = list(dict.fromkeys(name for each in lines.values() for name, points in each.items() if points))
    legend = {name: style.ARMS[place % len(style.ARMS)] for place, name in enumerate(names)}
    pictures = {}
    for title, each in lines.items():
        if any(each.values()):
            panel = {title: {name: panels.Line(points) for name, points in each.items()}}
            with _drawing:
                chart = panels.draw(panel, axis=axis, cursor=cursor, colours=legend)
                pictures[title] = chart.picture()
    return Curves(pictures, legend)
