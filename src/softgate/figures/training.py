"""Panels of lines over epochs. Drawn with matplotlib's object interface on the Agg canvas: no state, no window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from softgate.errors import require
from softgate.figures.panels import whole_epochs

DPI = 100


def curves(history: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], title: str = "") -> Image.Image:
    """Panels of lines over epochs.

    Args:
        history: Panel title to line name to (epoch, value) points. Panels without points are left out.
        title: A line above the panels.

    Returns:
        The picture, RGB.
    """
    panels = {name: lines for name, lines in history.items() if any(lines.values())}
    require(bool(panels), "curves: there is no point to draw.")
    figure = Figure(figsize=(4.2 * len(panels), 3.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for line, points in lines.items():
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker="o", markersize=3, linewidth=1.5, label=line)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch")
        whole_epochs(axes)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return _picture(figure)


def _picture(figure: Figure) -> Image.Image:
    canvas: Any = figure.canvas
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
