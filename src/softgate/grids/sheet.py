"""A white sheet on which pictures and words are put by the pixel, with words that know their width.

Drawn with Pillow in matplotlib's own typeface, which comes with it; letters that it lacks, in an installed font with
them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from softgate.figures import fonts
from softgate.grids.scaling import colours

CELL = 112
"""Least size of a cell in pixels; smaller images are enlarged by a whole factor."""

SIZE = 12
"""Height of ordinary words in pixels, beside cells of the least size."""

GREY = "#595959"
"""Colour of what stands beside the labels."""

BAR = 8
"""Length of a key's bar of colours, in heights of words."""

KEYS = {
    "cell": "Below zero to above, grey is zero; each cell scaled by itself.",
    "shared": "Below zero to above, grey is zero; one scale for all cells of a read-out.",
    "seismic": "Below zero to above, white is zero; the sum over channels, each cell scaled by itself.",
}
"""Scale to what stands beside its bar of colours."""


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def width_of(words: str, size: int = SIZE, bold: bool = False) -> float:
    """The width of one line of words in pixels."""
    return sum(_font(path, size).getlength(part) for part, path in fonts.runs(fonts.replaced(words, bold), bold))


def wrap(words: str, width: float, lines: int, size: int = SIZE, bold: bool = False) -> list[str]:
    """Breaks words into at most `lines` lines no wider than `width` pixels; what does not fit ends in an ellipsis."""
    rest = fonts.replaced(words, bold).split()
    found: list[str] = []
    while rest and len(found) < lines:
        last, line = len(found) == lines - 1, rest.pop(0)
        while rest and (last or width_of(f"{line} {rest[0]}", size, bold) <= width):
            line = f"{line} {rest.pop(0)}"
        found.append(_cut(line, width, size, bold))
    return found or [""]


def _cut(line: str, width: float, size: int, bold: bool) -> str:
    if width_of(line, size, bold) <= width:
        return line
    while line and width_of(line + "\u2026", size, bold) > width:
        line = line[:-1]
    return line.rstrip() + "\u2026"


def zoom_for(height: int, width: int) -> int:
    """The whole factor by which cells of a size are enlarged to be at least `CELL` pixels."""
    return max(1, -(-CELL // max(height, width)))


def size_for(cell: int) -> int:
    """The height of words beside cells of so many pixels: they stay legible where a large picture is shown small."""
    return max(SIZE, round(SIZE * cell / 144))


def line_for(size: int) -> int:
    """From one line of words to the next."""
    return round(1.25 * size)


def key_lines(scale: str, room: float, size: int = SIZE) -> list[str]:
    """The words of a key in so many pixels from its left end; no line where the scale is unknown."""
    return wrap(KEYS[scale], room - (BAR + 1) * size, 4, size) if scale in KEYS else []


class Sheet:
    """A white picture to put cells and words on.

    Args:
        width: In pixels.
        height: In pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self.image)

    def cell(self, values: Tensor, left: int, top: int, zoom: int = 1) -> None:
        """Puts colours [3, H, W], or greys [1, H, W], in [0, 1] at a place, enlarged by a whole factor."""
        levels = (
            (values.detach().expand(3, -1, -1).float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        )
        self.image.paste(Image.fromarray(np.repeat(np.repeat(levels, zoom, 0), zoom, 1)), (left, top))

    def words(
        self,
        lines: str | list[str],
        x: float,
        y: float,
        anchor: str = "left",
        size: int = SIZE,
        bold: bool = False,
        colour: str = "black",
    ) -> None:
        """Writes lines downwards from `y`; `x` is their left end, middle or right end, as `anchor` says."""
        base = y + _font(fonts.own(bold), size).getmetrics()[0]
        for index, line in enumerate([lines] if isinstance(lines, str) else lines):
            shift = {"left": 0.0, "middle": 0.5, "right": 1.0}[anchor] * width_of(line, size, bold)
            left: float = round(x - shift)
            for part, path in fonts.runs(fonts.replaced(line, bold), bold):
                font = _font(path, size)
                self._draw.text((left, base + index * line_for(size)), part, fill=colour, font=font, anchor="ls")
                left += font.getlength(part)

    def key(self, scale: str, lines: list[str], left: int, top: int, size: int = SIZE) -> None:
        """Draws what the colours of pullbacks mean: a bar from below zero to above, zero in its middle, and words.

        Args:
            scale: As in `pullback_grid`.
            lines: From `key_lines`.
            left: Of the bar, in pixels.
            top: Of the first line.
            size: Height of the words.
        """
        width = BAR * size
        values = torch.linspace(-1, 1, width).expand(1, size, width)
        self.cell(colours(values, "seismic" if scale == "seismic" else "shared", 1.0), left, top)
        self.words(lines, left + width + size, top - 1, size=size, colour=GREY)

    def frame(self, left: int, top: int, width: int, height: int, colour: str) -> None:
        """Draws a frame two pixels wide around a cell."""
        self._draw.rectangle((left - 2, top - 2, left + width + 1, top + height + 1), outline=colour, width=2)
