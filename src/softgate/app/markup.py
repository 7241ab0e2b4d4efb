"""Pictures and sentences as HTML: no file is served, every picture stands in the page itself and says what it shows."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from softgate.files import encoded
from softgate.tables import Table

CSS = """
.softgate-picture {overflow-x: auto}
.softgate-picture img {max-width: 100%; height: auto; image-rendering: auto; border-radius: 4px}
.softgate-grids {display: flex; flex-wrap: wrap; gap: 16px}
.softgate-grids figure {margin: 0; flex: 0 1 640px; min-width: 0}
.softgate-grids figure.softgate-curve {flex: 0 1 420px}
.softgate-grids img {max-width: 100%; height: auto; border-radius: 4px}
.softgate-legend {display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; padding: 0; margin: 8px 0}
.softgate-legend li {overflow-wrap: anywhere}
.softgate-legend span {display: inline-block; width: 14px; height: 14px; margin-right: 6px; border-radius: 3px;
  border: 1px solid #8888; vertical-align: -2px}
.softgate-error {border-left: 4px solid #d62728; padding: 8px 12px; overflow-wrap: anywhere}
.softgate-wipe {--at: 50%; max-width: 336px}
.softgate-wipe-pictures {position: relative; line-height: 0}
.softgate-wipe img {width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px}
.softgate-wipe img + img {position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at))}
.softgate-wipe-line {position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; background: #d62728}
.softgate-wipe input {width: 100%; margin: 12px 0 4px; accent-color: #2563eb; height: 24px}
.softgate-wipe p {display: flex; justify-content: space-between; gap: 16px; margin: 0}
.softgate-upload span {display: block; margin-bottom: 8px; color: var(--block-label-text-color)}
.softgate-upload input {max-width: 100%}
.softgate-clear {margin-top: 8px; padding: 4px 12px; border-radius: 4px;
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color)}
.softgate-bar {height: 12px; border-radius: 6px; background: #8884; overflow: hidden}
.softgate-bar div {height: 100%; background: #2563eb}
.softgate-map {overflow-x: auto}
.softgate-map table {border-collapse: collapse; width: auto}
.softgate-map th {font-weight: normal; padding: 2px 6px; font-size: 12px; text-align: center}
.softgate-map :is(table, tr, th, td), .softgate-table :is(table, tr) {border: 0 !important}
.softgate-map td {padding: 1px !important}
.softgate-map button {width: 44px; height: 36px; padding: 0; font-size: 12px; border-radius: 3px; cursor: pointer}
.softgate-map button[aria-pressed=true], .softgate-map button:focus-visible {outline: 3px solid #e08e1b;
  outline-offset: -1px}
.softgate-table {overflow-x: auto}
.softgate-table table {border-collapse: collapse}
.softgate-table th, .softgate-table td {padding: 4px 12px 4px 0 !important; text-align: right; border: 0 !important;
  border-bottom: 1px solid #8884 !important}
.softgate-table th:first-child, .softgate-table td:first-child {text-align: left}
.gradio-container {overflow: clip !important}
#picture {position: sticky; top: 0; z-index: 5; max-height: 70vh; overflow-y: auto;
  background: var(--body-background-fill)}
.softgate-first {align-self: stretch}
@media (max-width: 640px) {
  .gradio-container {padding: 8px !important}
  .softgate-first {display: contents !important}
  .softgate-first > * {flex: 1 1 100%; min-width: 0 !important}
  #message {order: -2}
  #picture {order: -1; max-height: 45vh}
  .softgate-picture:not(.softgate-fits) img {max-width: none; width: auto}
  .softgate-grids figure:not(.softgate-curve) img {max-width: none; width: auto}
  .softgate-grids figure {flex-basis: 100%; overflow-x: auto}
}
"""

NARROW = 640
"""Pixels of a narrow screen, at most: a phone's."""

FITS = 480
"""Pixels of a picture that is still legible when it is made as narrow as a phone."""

UPLOAD = """
<label class="softgate-upload"><span>Upload an image</span><input type="file" accept="image/*"></label>
<button type="button" class="softgate-clear" hidden>Remove the upload</button>
"""

SAVE = """async (file) => {
  if (!file) return;
  const [name, data] = file.split('|');
  const link = document.createElement('a');
  link.href = URL.createObjectURL(await (await fetch('data:application/octet-stream;base64,' + data)).blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""
"""Saves a file of `download`."""

PICK = """
element.addEventListener('click', event => {
  const cell = event.target.closest('button[data-s]');
  if (cell) trigger('click', {s: Number(cell.dataset.s), t: Number(cell.dataset.t)});
});
"""
"""Of the heat map: a click, or Enter on a cell, tells which one."""


def uploads(most: float) -> str:
    """JavaScript of `UPLOAD`: the browser reads the file, and sends it where it has at most so many bytes."""
    return f"""
const input = element.querySelector('input'), clear = element.querySelector('button');
input.addEventListener('change', () => {{
  const file = input.files[0];
  if (!file) return;
  clear.hidden = false;
  if (file.size > {int(most)}) {{ trigger('upload', {{size: file.size}}); return; }}
  const reader = new FileReader();
  reader.onload = () => trigger('upload', {{data: reader.result.split(',')[1] || '', size: file.size}});
  reader.readAsDataURL(file);
}});
clear.addEventListener('click', () => {{ input.value = ''; clear.hidden = true; trigger('clear'); }});
"""


def download(name: str, content: bytes) -> str:
    """A file on its way to `SAVE`: nothing is written on this machine."""
    return f"{name}|{base64.b64encode(content).decode('ascii')}"


def picture(image: Image.Image, narrow: Image.Image, alt: str) -> str:
    """A picture with its words, and another in its place on a narrow screen."""
    other = f'<source media="(max-width: {NARROW}px)" srcset="{_data(narrow)}" width="{narrow.width}"'
    other += f' height="{narrow.height}">'
    fits = " softgate-fits" if narrow.width <= FITS else ""
    return f'<div class="softgate-picture{fits}"><picture>{other}{_img(image, alt)}</picture></div>'


def figures(each: Sequence[tuple[Image.Image | None, str]]) -> str:
    """Pictures side by side, below each other where it is narrow; a missing one leaves its words."""
    parts = []
    for image, words in each:
        shown = _img(image, words) if image is not None else ""
        parts.append(f"<figure>{shown}<figcaption>{escape(words)}</figcaption></figure>")
    return f'<div class="softgate-grids">{"".join(parts)}</div>'


def curves(pictures: Mapping[str, Image.Image], legend: Mapping[str, str], said: str) -> str:
    """Charts side by side under one legend; nothing where there is none.

    Args:
        pictures: Title to chart.
        legend: Line name to its colour.
        said: What all of them show, for who does not see them.
    """
    if not pictures:
        return ""
    names = "".join(f'<li><span style="background:{c}"></span>{escape(name)}</li>' for name, c in legend.items())
    drawn = "".join(
        f'<figure class="softgate-curve">{_img(image, f"{title}: {said}")}</figure>'
        for title, image in pictures.items()
    )
    return f'<ul class="softgate-legend">{names}</ul><div class="softgate-grids">{drawn}</div>'


def wipe(left: tuple[str, Image.Image], right: tuple[str, Image.Image]) -> str:
    """Two pictures on one place, and a slider that says how much of the first is seen."""
    pictures = "".join(_img(image, words) for words, image in (left, right))
    moves = "this.parentElement.style.setProperty('--at', this.value + '%')"
    return (
        f'<div class="softgate-wipe"><div class="softgate-wipe-pictures">{pictures}'
        f'<div class="softgate-wipe-line"></div></div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="Wipe" oninput="{moves}">'
        f"<p><span>{escape(left[0])}</span><span>{escape(right[0])}</span></p></div>"
    )


def heat_map(values: Sequence[Sequence[float]], epochs: Sequence[str], picked: tuple[int, int] | None) -> str:
    """Values in [-1, 1] of every pair of moments as cells to click on, s up and t across: red above zero, blue below.

    Args:
        values: [S, S], s first; NaN is grey and no cell to click on.
        epochs: [S] names of the moments.
        picked: (s, t) of the cell that is shown as chosen.
    """
    rows = []
    for s in reversed(range(len(epochs))):
        cells = []
        for t, value in enumerate(values[s]):
            if math.isnan(value):
                cells.append('<td><button disabled style="background:#999" aria-label="not measured"></button></td>')
                continue
            said = f"gates of epoch {epochs[s]}, network of epoch {epochs[t]}: {value:.2f}"
            back = to_hex(colormaps["RdBu_r"]((value + 1) / 2))
            ink = "#fff" if abs(value) > 0.7 else "#111"
            cells.append(
                f'<td><button data-s="{s}" data-t="{t}" aria-pressed="{str((s, t) == picked).lower()}" title="{said}" '
                f'aria-label="{said}" style="background:{back};color:{ink}">{value:.2f}</button></td>'
            )
        rows.append(f'<tr><th scope="row">{escape(epochs[s])}</th>{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col">{escape(epoch)}</th>' for epoch in epochs)
    return (
        '<div class="softgate-map"><p>Up: gates of epoch s. Across: network of epoch t.</p><table>'
        f"{''.join(rows)}<tr><th></th>{heads}</tr></table></div>"
    )


def table(made: Table) -> str:
    """A table with its title, that scrolls by itself where it is wide."""
    return f'<p><strong>{escape(made.title)}</strong></p><div class="softgate-table">{made.html()}</div>'


def progress(share: float, words: str) -> str:
    """How far something is."""
    percent = round(100 * min(1.0, max(0.0, share)))
    return (
        f'<p role="status">{escape(words)}</p><div class="softgate-bar" role="progressbar" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}" aria-label="Progress">'
        f'<div style="width:{percent}%"></div></div>'
    )


def lines(words: Sequence[str]) -> str:
    """Sentences, each a paragraph."""
    return "".join(f"<p>{escape(line)}</p>" for line in words)


def error(sentence: str) -> str:
    """What is wrong, as a screen reader tells it at once."""
    return f'<p class="softgate-error" role="alert">{escape(sentence)}</p>'


def _img(image: Image.Image, alt: str) -> str:
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="{_data(image)}" alt="{escape(alt, quote=True)}" {size}>'


def _data(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(encoded(image, 'PNG')).decode('ascii')}"
