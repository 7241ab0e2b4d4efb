"""Loss and accuracy over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from softgate.errors import require
from softgate.figures import style
from softgate.figures.panels import whole_epochs


@style.context()
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
    figure = style.figure(4.2 * len(panels), 3.2, title)
    for place, (name, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for line, points in lines.items():
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker="o", markersize=3, linewidth=1.5, label=line)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch")
        whole_epochs(axes)
        if len(lines) > 1:
            axes.legend(fontsize=9)
    return style.picture(figure)
