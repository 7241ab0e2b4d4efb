"""One image's pullbacks over training: a strip of pictures side by side, and a small animation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from softgate.errors import require
from softgate.files import replacing
from softgate.grids.scaling import colours, peak
from softgate.grids.sheet import GREY, Sheet, key_lines, line_for, size_for, width_of, wrap, zoom_for

GAP, EDGE, LABEL = 5, 12, 9
COLOURS = 64
"""Colours of an animation; pullbacks are nearly grey, and fewer colours make a small file."""


def film_strip(
    image: Tensor,
    films: Mapping[str, Tensor],
    epochs: Sequence[int],
    title: str = "",
    *,
    scale: str = "cell",
) -> Image.Image:
    """Rows are read-outs, columns epochs.

    Args:
        image: [C, H, W] pixels in [0, 1], shown in the first column.
        films: Read-out name to its pullbacks [len(epochs), C, H, W].
        epochs: Which epoch each column is.
        title: A line above the strip.
        scale: As in `pullback_grid`; "shared" gives each row one scale over all epochs.

    Returns:
        The picture, RGB.
    """
    _check(films, epochs)
    _, height, width = image.shape
    zoom = zoom_for(height, width)
    w, h = width * zoom, height * zoom
    size = size_for(min(w, h))
    line = line_for(size)
    heads = {name: wrap(name, LABEL * size, 4, size) for name in films}
    margin = EDGE + round(max(width_of(words, size) for lines in heads.values() for words in lines)) + 8
    full = margin + (len(epochs) + 1) * (w + GAP) + 2 * GAP + EDGE
    above = wrap(title, full - 2 * EDGE, 3, size) if title else []
    top = EDGE + len(above) * line + line + 6
    key, below = key_lines(scale, full - 2 * EDGE, size), top + len(films) * (h + GAP) + GAP
    sheet = Sheet(full, below + len(key) * line + EDGE)
    sheet.key(scale, key, EDGE, below, size)
    sheet.words(above, EDGE, EDGE - 2, size=size, colour=GREY)
    lefts = [margin + w + 3 * GAP + k * (w + GAP) for k in range(len(epochs))]
    for name, left in zip(("image", *(f"epoch {epoch}" for epoch in epochs)), (margin, *lefts), strict=True):
        sheet.words(wrap(name, w, 1, size), left + w / 2, top - line - 2, "middle", size)
    for row, (name, film) in enumerate(films.items()):
        at = top + row * (h + GAP)
        sheet.words(heads[name], margin - 8, at + h / 2 - len(heads[name]) * line / 2, "right", size)
        sheet.cell(image, margin, at, zoom)
        for values, left in zip(colours(film, scale, peak(film)), lefts, strict=True):
            sheet.cell(values, left, at, zoom)
    return sheet.image


def animation(
    image: Tensor,
    films: Mapping[str, Tensor],
    epochs: Sequence[int],
    path: str | Path,
    *,
    scale: str = "cell",
    seconds: float = 8.0,
) -> None:
    """Writes a GIF: the image and its pullbacks side by side, one frame an epoch, the last one held.

    Args:
        image: As in `film_strip`.
        films: As in `film_strip`.
        epochs: Which epoch each frame is.
        path: The file; whoever reads it sees the old one or the new one.
        scale: As in `film_strip`.
        seconds: About how long the whole lasts; a frame is shown for 80 to 500 ms.
    """
    _check(films, epochs)
    _, height, width = image.shape
    zoom = zoom_for(height, width)
    w, h = width * zoom, height * zoom
    size = size_for(min(w, h))
    line = line_for(size)
    heads = [wrap(name, w, 2, size) for name in films]
    top = EDGE + max(len(lines) for lines in heads) * line + 4
    coloured = [colours(film, scale, peak(film)) for film in films.values()]
    frames = []
    for index, epoch in enumerate(epochs):
        sheet = Sheet(2 * EDGE + (len(films) + 1) * (w + GAP) - GAP, top + h + line + EDGE)
        sheet.cell(image, EDGE, top, zoom)
        sheet.words(f"epoch {epoch}", EDGE + w / 2, top + h + 4, "middle", size)
        for column, (lines, film) in enumerate(zip(heads, coloured, strict=True), start=1):
            left = EDGE + column * (w + GAP)
            sheet.cell(film[index], left, top, zoom)
            sheet.words(lines, left + w / 2, top - 4 - len(lines) * line, "middle", size)
        frames.append(sheet.image.quantize(COLOURS, Image.Quantize.MEDIANCUT))
    pace = int(min(500, max(80, 1000 * seconds / len(frames))))
    durations = [pace] * (len(frames) - 1) + [1500]
    with replacing(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)


def _check(films: Mapping[str, Tensor], epochs: Sequence[int]) -> None:
    require(len(epochs) > 0 and len(films) > 0, "film: there is no epoch to show.")
    for name, film in films.items():
        require(len(film) == len(epochs), f"film '{name}' has {len(film)} pictures for {len(epochs)} epochs.")
