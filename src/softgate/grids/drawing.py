"""The paper's grid (5.1): row = image, column = target class; one block of columns for each read-out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from softgate.errors import require
from softgate.grids.scaling import colours, peak
from softgate.grids.sheet import GREY, Sheet, key_lines, line_for, size_for, width_of, wrap, zoom_for
from softgate.rounding import rounded

TRUE_CLASS = "#d62728"
"""Colour of the frame around the cell whose target is the image's own class."""
FLIPPED = "#1a7f37"
"""Colour of the words under a cell whose target became the predicted class."""

GAP, BLOCK_GAP, EDGE, LABEL = 5, 22, 12, 9
"""Pixels between cells, between blocks and around the sheet; greatest width of a row's label, in heights of words."""


@dataclass(frozen=True)
class Block:
    """One block of columns of a grid.

    Attributes:
        values: [B, K, C, H, W] pullbacks or differences, or pixels in [0, 1].
        pixels: Whether the values are pixels, shown as they are.
        captions: For each of the B x K cells, lines of words under it; None leaves them out.
        flipped: For each cell whether its words are green: the target became the predicted class.
    """

    values: Tensor
    pixels: bool = False
    captions: Sequence[Sequence[Sequence[str]]] | None = None
    flipped: Sequence[Sequence[bool]] | None = None


def pullback_grid(
    images: Tensor,
    blocks: Mapping[str, Tensor | Block],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: Sequence[int],
    targets: Sequence[int],
    title: str = "",
    *,
    scale: str = "cell",
    tops: Mapping[str, float] | None = None,
    across: int | None = None,
    image_captions: Sequence[Sequence[str]] | None = None,
    footer: str = "",
) -> Image.Image:
    """Draws a grid.

    Args:
        images: [B, C, H, W] pixels in [0, 1], C 1 or 3, shown in the first column.
        blocks: Read-out name to pullbacks [B, K, C, H, W] or to a `Block`.
        rows: B row labels, the true classes.
        columns: K column labels, the target classes.
        labels: B true classes, to frame the cells whose target is the image's own class.
        targets: K target classes.
        title: A line above the grid.
        scale: "cell" scales each pullback by itself; "shared" gives each block one scale, symmetric about zero, which
            is written beside its name; "seismic" is a signed heat map, each cell by itself.
        tops: Read-out name to the value that is black or white, where scale is "shared" and not the block's own.
        across: Blocks side by side, further ones below; None is all.
        image_captions: For each image, lines of words under it.
        footer: Words below the grid.

    Returns:
        The picture, RGB.

    Raises:
        SoftgateError: For a block of the wrong shape or an unknown scale.
    """
    count, channels, height, width = images.shape
    shape = (count, len(columns), channels, height, width)
    whole: dict[str, Block] = {}
    for name, given in blocks.items():
        whole[name] = given if isinstance(given, Block) else Block(given)
        found = tuple(whole[name].values.shape)
        require(found == shape, f"grid block '{name}' of shape {found}: {shape} is needed.")
    bands = _bands(list(whole), across)
    zoom = zoom_for(height, width)
    w, h = width * zoom, height * zoom
    size = size_for(min(w, h))
    line = line_for(size)
    under = max([len(c) for c in image_captions or ()], default=0)
    for block in whole.values():
        under = max([under, *(len(cell) for row in block.captions or () for cell in row)])
    step = h + GAP + (under * line + 5 if under else 0)
    heads = [wrap(name, w, 2, size) for name in columns]
    row_heads = [wrap(name, LABEL * size, 3, size) for name in rows]
    margin = EDGE + round(max(width_of(words, size) for lines in row_heads for words in lines)) + 8
    block_width = len(columns) * (w + GAP) - GAP
    limits = {name: _limit(block, scale, (tops or {}).get(name)) for name, block in whole.items()}
    titles = {name: wrap(_title(name, limits[name]), block_width, 2, size + 1, bold=True) for name in whole}
    head = round(1.6 * line) + max(len(lines) for lines in heads) * line + 4
    head += max(len(lines) - 1 for lines in titles.values()) * line_for(size + 1)
    full = margin + w + max(len(band) for band in bands) * (BLOCK_GAP + block_width) + EDGE
    # Title and footer go from edge to edge.
    above = wrap(title, full - 2 * EDGE, 3, size) if title else []
    below = wrap(footer, full - 2 * EDGE, 4, size) if footer else []
    top = EDGE + len(above) * line
    band_height = head + count * step + EDGE
    keyed = any(not block.pixels for block in whole.values())
    key = key_lines(scale, full - 2 * EDGE, size) if keyed else []
    under_all = len(below) * line + (len(key) * line + line // 2 if key else 0)
    sheet = Sheet(full, top + len(bands) * band_height + under_all + (EDGE if under_all else 0))
    sheet.words(above, EDGE, EDGE - 2, size=size, colour=GREY)
    for band in bands:
        first = top + head
        sheet.words("image", margin + w / 2, first - 4 - line, "middle", size)
        for row in range(count):
            at = first + row * step
            lines = row_heads[row]
            sheet.words(lines, margin - 8, at + h / 2 - len(lines) * line / 2, "right", size)
            sheet.cell(images[row], margin, at, zoom)
            if image_captions:
                _caption(sheet, image_captions[row], margin, at + h, w, size - 1, GREY)
        for index, name in enumerate(band):
            block, left = whole[name], margin + w + BLOCK_GAP + index * (block_width + BLOCK_GAP)
            values = block.values if block.pixels else colours(block.values, scale, limits[name])
            sheet.words(titles[name], left + block_width / 2, top + 2, "middle", size + 1, bold=True)
            for k, lines in enumerate(heads):
                x = left + k * (w + GAP)
                sheet.words(lines, x + w / 2, first - 4 - len(lines) * line, "middle", size)
                for row, own in enumerate(labels):
                    at = first + row * step
                    sheet.cell(values[row, k], x, at, zoom)
                    if own == targets[k]:
                        sheet.frame(x, at, w, h, TRUE_CLASS)
                    if block.captions:
                        flipped = bool(block.flipped and block.flipped[row][k])
                        _caption(sheet, block.captions[row][k], x, at + h, w, size - 1, FLIPPED if flipped else GREY)
        top += band_height
    if key:
        sheet.key(scale, key, EDGE, top, size)
        top += len(key) * line + line // 2
    sheet.words(below, EDGE, top, size=size, colour=GREY)
    return sheet.image


def _limit(block: Block, scale: str, given: float | None) -> float | None:
    """The value that is black or white in a whole block; None where each cell has its own, or pixels are shown."""
    if block.pixels or scale != "shared":
        return None
    return peak(block.values) if given is None else given


def _title(name: str, limit: float | None) -> str:
    return name if limit is None else f"{name} (black to white: \u00b1{rounded(limit)})"


def _bands(names: list[str], across: int | None) -> list[list[str]]:
    size = across or len(names)
    return [names[i : i + size] for i in range(0, len(names), size)]


def _caption(sheet: Sheet, lines: Sequence[str], left: int, top: int, width: int, size: int, colour: str) -> None:
    cut = [wrap(line, width, 1, size)[0] for line in lines]
    sheet.words(cut, left + width / 2, top + 3, "middle", size, colour=colour)
