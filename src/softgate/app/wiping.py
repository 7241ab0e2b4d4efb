"""The pictures of a grid one by one, large, so that one can be wiped over another."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from softgate.app.look import Shown
from softgate.grids import Sheet
from softgate.grids.scaling import colours, peak

SIDE = 336
"""Pixels that a side of a picture has about, enlarged by a whole factor; larger ones stay as they are."""


def pictures(shown: Shown) -> dict[str, Image.Image]:
    """The cells of what is shown by what they are called, in the colours that they have in the grid."""
    grid, found = shown.grid, {}
    several = len(shown.rows) > 1
    for row, called in enumerate(shown.rows):
        end = f" ({called})" if several else ""
        found[f"the image{end}"] = _large(grid.images[row])
        for name, reading in grid.readings.items():
            top = peak(reading.values) if shown.scale == "shared" else None
            drawn = colours(reading.values[row][None], shown.scale, top)[0]
            for k, target in enumerate(grid.targets):
                words = f"{name} of {grid.names[target]}{end}"
                if grid.kind == "ascent":
                    found[f"{words}: image after the ascent"] = _large(reading.pixels[row, k])
                    words += ": what it added"
                found[words] = _large(drawn[k])
    return found


def pair(names: list[str], before: tuple[str | None, str | None]) -> tuple[str, str]:
    """Which two are compared: those as before where they are there, else the first two read-outs of one target."""
    if all(name in names for name in before):
        return before[0] or "", before[1] or ""
    hard = next((name for name in names[1:] if name.startswith("hard")), names[0])
    soft = next((name for name in names if name.startswith("soft")), names[-1])
    return hard, soft


def _large(values: Tensor) -> Image.Image:
    height, width = values.shape[-2:]
    zoom = max(1, SIDE // max(height, width))
    sheet = Sheet(width * zoom, height * zoom)
    sheet.cell(values, 0, 0, zoom)
    return sheet.image
