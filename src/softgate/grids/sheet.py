"""A white sheet on which pictures and words are put by the pixel, with words that know their width.

Drawn with Pillow in matplotlib's own typeface, which comes with it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 112
"""Least size of a cell in pixels; smaller images are enlarged by a whole factor."""

SIZE = 12
"""Height of ordinary words in pixels, beside cells of the least size."""

GREY = "#595959"
"""Colour of what stands beside the labels."""


@lru_cache(maxsize=16)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def width_of(words: str, size: int = SIZE, bold: bool = False) -> float:
    """The width of one line of words in pixels."""
    return _font(size, bold).getlength(words)


def wrap(words: str, width: float, lines: int, size: int = SIZE, bold: bool = False) -> list[str]:
    """Breaks words into at most `lines` lines no wider than `width` pixels; what does not fit ends in an ellipsis."""
    rest = words.split()
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
        font = _font(size, bold)
        for index, line in enumerate([lines] if isinstance(lines, str) else lines):
            shift = {"left": 0.0, "middle": 0.5, "right": 1.0}[anchor] * font.getlength(line)
            self._draw.text((round(x - shift), y + index * line_for(size)), line, fill=colour, font=font)

    def frame(self, left: int, top: int, width: int, height: int, colour: str) -> None:
        """Draws a frame two pixels wide around a cell."""
        self._draw.rectangle((left - 2, top - 2, left + width + 1, top + height + 1), outline=colour, width=2)
