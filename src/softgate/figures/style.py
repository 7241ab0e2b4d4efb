"""How every chart looks: one context around the drawing, the colours, and the way from a figure to a picture.

Drawn with matplotlib's object interface: no window, no state. Within `context()` only matplotlib's own defaults and
what is set here count, whatever a user's matplotlibrc says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from softgate.figures import FORMATS

DPI = 100
"""Pixels an inch."""

ARMS = ("#222222", "#d1495b", "#00798c", "#e08e1b", "#5b5ea6", "#66a182", "#8c5e58", "#2e86c1", "#b03a8c", "#7f7f7f")
"""Colours of the arms of a comparison, in turn; the baseline is black."""

KINDS = {"hard": "#1f77b4", "soft": "#d62728", "train": "#7f7f7f", "val": "#2ca02c"}
"""Fixed colours of read-outs and splits, so that a line means the same in every panel."""

CONTROLS = {
    "shuffled": "#2ca02c",
    "same class": "#17becf",
    "mean": "#9467bd",
    "class mean": "#e377c2",
    "ones": "#ff7f0e",
    "f(s)": "#222222",
    "epoch 0": "#8c564b",
}
"""Colours of the controls of swap."""

_SETTINGS = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": DPI,
    "figure.titlesize": 10,
    "font.family": "sans-serif",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType, so that words are words to whoever searches or edits a paper
    "ps.fonttype": 42,
    "svg.fonttype": "none",  # letters, not outlines: small, and found by a search
    "svg.hashsalt": "softgate",  # the same chart is the same file
}


@contextmanager
def context() -> Iterator[None]:
    """Charts are made and written in here, also as a decorator; before and after, matplotlib is as the user has it."""
    with style.context(["default", _SETTINGS]):
        yield


def figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure.

    Args:
        width: Inches.
        height: Inches.
        title: A line above all.
    """
    made = Figure(figsize=(width, height))
    if title:
        made.suptitle(title, parse_math=False)  # a name with dollars is no formula
    return made


@dataclass(frozen=True)
class Chart:
    """A chart, as pixels or as a file.

    Attributes:
        figure: What is drawn.
    """

    figure: Figure

    @property
    def width(self) -> int:
        """In pixels, as a picture."""
        return round(self.figure.get_figwidth() * DPI)

    @property
    def height(self) -> int:
        """In pixels, as a picture."""
        return round(self.figure.get_figheight() * DPI)

    def picture(self) -> Image.Image:
        """As pixels, RGB."""
        with context():
            return picture(self.figure)

    def encoded(self, kind: str) -> bytes:
        """The content of a file of one of `FORMATS`, the same bytes for the same chart.

        PDF and SVG keep words as words, in embedded fonts, and lines as lines.

        Raises:
            ValueError: For another format.
        """
        file = BytesIO()
        with context():
            if kind == "png":
                picture(self.figure).save(file, "PNG")
            elif kind == "svg":
                return svg(self.figure)
            elif kind == "pdf":
                with _quiet("fontTools"):
                    self.figure.savefig(file, format="pdf", metadata={"CreationDate": None})
            else:
                raise ValueError(f"format {kind}: one of {', '.join(FORMATS)} is needed.")
        return file.getvalue()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silences what a library logs step by step, such as each table of a font that it takes along."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def picture(made: Figure) -> Image.Image:
    """A figure as pixels, RGB."""
    canvas: Any = FigureCanvasAgg(made)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def svg(made: Figure) -> bytes:
    """A figure as an SVG file, the same bytes for the same chart."""
    file = BytesIO()
    made.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
