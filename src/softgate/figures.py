"""Tensors to pictures: pullback grids and curves. Pictures come back as PIL images, figures are never shown.

Drawn with matplotlib's object interface on the Agg canvas: no global state, no window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from softgate.errors import require

DPI = 100
CELL = 96
"""Least size of a cell in pixels; smaller images are enlarged by a whole factor."""
QUANTILE = 0.995
"""Share of a pullback's values that its colours cover without saturating."""
TRUE_CLASS = "#d62728"
"""Colour of the frame around the cell whose target is the image's own class."""


def scale_each(v: Tensor) -> Tensor:
    """Maps each pullback to [0, 1], zero at mid-grey, by its own 99.5th percentile of absolute values.

    Pullbacks have heavy tails: scaled by their maximum they are nearly all grey. Half a percent saturates.

    Args:
        v: [..., C, H, W].

    Returns:
        The same shape; an all-zero or non-finite pullback becomes mid-grey.
    """
    size = v.abs().flatten(-3).float()
    peak = size.quantile(QUANTILE, dim=-1) if size.shape[-1] <= 2**24 else size.amax(-1)  # quantile's own limit
    peak = torch.where(peak > 0, peak, size.amax(-1))[..., None, None, None]
    scaled = torch.where(peak > 0, v / peak, torch.zeros_like(v))
    return (scaled / 2 + 0.5).nan_to_num(0.5).clamp(0, 1)


def pullback_grid(
    images: Tensor,
    blocks: Mapping[str, Tensor],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: Sequence[int],
    targets: Sequence[int],
    title: str = "",
) -> Image.Image:
    """The paper's grid (5.1): row = image, column = target class; one block of columns for each read-out.

    Args:
        images: [B, 3, H, W] pixels in [0, 1], shown in the first column.
        blocks: Read-out name to pullbacks [B, K, 3, H, W]; drawn side by side, each cell scaled by itself.
        rows: B row labels, the true classes.
        columns: K column labels, the target classes.
        labels: B true classes, to frame the cells whose target is the image's own class.
        targets: K target classes.
        title: A line above the grid.

    Returns:
        The picture, RGB.
    """
    count, _, height, width = images.shape
    for name, block in blocks.items():
        shape = (count, len(columns), 3, height, width)
        require(tuple(block.shape) == shape, f"grid block '{name}' of shape {tuple(block.shape)}: {shape} is needed.")
    zoom = max(1, -(-CELL // max(height, width)))
    h, w, gap = height * zoom, width * zoom, max(2, CELL // 32)
    block_gap = 6 * gap
    across = 1 + len(columns) * len(blocks)
    canvas = np.ones((count * (h + gap) - gap, across * (w + gap) - gap + block_gap * len(blocks), 3), dtype=np.float32)

    def put(cell: Tensor, row: int, left: int) -> None:
        big = cell.float().cpu().repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)
        canvas[row * (h + gap) : row * (h + gap) + h, left : left + w] = big.permute(1, 2, 0).numpy()

    for row in range(count):
        put(images[row], row, 0)
    lefts: dict[str, list[int]] = {}
    start = w + gap + block_gap
    for name, block in blocks.items():
        lefts[name] = [start + k * (w + gap) for k in range(len(columns))]
        scaled = scale_each(block)
        for row in range(count):
            for k, left in enumerate(lefts[name]):
                put(scaled[row, k], row, left)
        start = lefts[name][-1] + w + gap + block_gap

    figure, axes = _canvas_axes(canvas, left=110, right=12, top=74 + (22 if title else 0), bottom=12)
    for row, label in enumerate(rows):
        axes.text(-8, row * (h + gap) + h / 2, _wrap(label), ha="right", va="center", fontsize=9)
    axes.text(w / 2, -6, "image", ha="center", va="bottom", fontsize=9)
    for name, starts in lefts.items():
        middle = (starts[0] + starts[-1] + w) / 2
        axes.text(middle, -44, name, ha="center", va="bottom", fontsize=11, weight="bold")
        for k, left in enumerate(starts):
            axes.text(left + w / 2, -6, _wrap(columns[k]), ha="center", va="bottom", fontsize=9)
            for row, own in enumerate(labels):
                if own == targets[k]:
                    spot = (left - 1.5, row * (h + gap) - 1.5)
                    axes.add_patch(Rectangle(spot, w + 2, h + 2, fill=False, edgecolor=TRUE_CLASS, linewidth=1.6))
    if title:
        axes.text(0, -70, title, ha="left", va="bottom", fontsize=9, color="0.35")
    return _picture(figure)


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
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return _picture(figure)


def _canvas_axes(canvas: Any, left: int, right: int, top: int, bottom: int) -> tuple[Figure, Any]:
    """A figure in which one array pixel is one picture pixel, with margins in pixels for the labels."""
    height, width = canvas.shape[:2]
    full_w, full_h = width + left + right, height + top + bottom
    figure = Figure(figsize=(full_w / DPI, full_h / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / full_w, bottom / full_h, width / full_w, height / full_h))
    axes.imshow(canvas, interpolation="nearest", extent=(0, width, height, 0), aspect="auto")
    axes.set_axis_off()
    return figure, axes


def _wrap(label: str) -> str:
    words = label.split()
    half = (len(words) + 1) // 2
    return label if len(label) <= 12 or half == len(words) else " ".join(words[:half]) + "\n" + " ".join(words[half:])


def _picture(figure: Figure) -> Image.Image:
    canvas: Any = figure.canvas
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
