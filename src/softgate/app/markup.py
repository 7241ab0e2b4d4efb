"""Pictures and sentences as HTML: no file is served, every picture stands in the page itself and says what it shows."""

from __future__ import annotations

import base64
from html import escape

from PIL import Image

from softgate.files import encoded

CSS = """
.softgate-picture {overflow-x: auto}
.softgate-picture img {max-width: 100%; height: auto; image-rendering: auto; border-radius: 4px}
.softgate-grids {display: flex; flex-wrap: wrap; gap: 16px}
.softgate-grids figure {margin: 0; flex: 1 1 320px; min-width: 0}
.softgate-grids img {max-width: 100%; height: auto}
.softgate-error {border-left: 4px solid #d62728; padding: 8px 12px}
@media (max-width: 640px) {
  .gradio-container {padding: 8px !important}
  .softgate-picture img {max-width: none; width: auto}
}
"""


def picture(image: Image.Image, alt: str) -> str:
    """A picture with its words."""
    return f'<div class="softgate-picture">{_img(image, alt)}</div>'


def figures(each: list[tuple[Image.Image | None, str]]) -> str:
    """Pictures side by side, below each other where it is narrow; a missing one leaves its words."""
    parts = []
    for image, words in each:
        shown = _img(image, words) if image is not None else ""
        parts.append(f"<figure>{shown}<figcaption>{escape(words)}</figcaption></figure>")
    return f'<div class="softgate-grids">{"".join(parts)}</div>'


def lines(words: list[str]) -> str:
    """Sentences, each a paragraph."""
    return "".join(f"<p>{escape(line)}</p>" for line in words)


def error(sentence: str) -> str:
    """What is wrong, as a screen reader tells it at once."""
    return f'<p class="softgate-error" role="alert">{escape(sentence)}</p>'


def _img(image: Image.Image, alt: str) -> str:
    data = base64.b64encode(encoded(image, "PNG")).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt, quote=True)}" {size}>'
