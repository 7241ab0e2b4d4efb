"""Pages in HTML from the templates beside this file: whatever is put into one is escaped."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from softgate import files
from softgate.figures.style import Chart

WIDTH = 1400
"""Pixels that a photograph is shrunk to."""

_TEMPLATES = Environment(
    loader=PackageLoader(__package__),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Picture:
    """A picture that lies in the page itself.

    Attributes:
        title: What it shows, for who cannot see it.
        uri: Its content, as a data URI.
        caption: Below it; "" for none.
        link: Address of the whole picture; "" for none.
    """

    title: str
    uri: str
    caption: str = ""
    link: str = ""


def chart(made: Chart, title: str, caption: str = "") -> Picture:
    """A chart, as a drawing in SVG."""
    return Picture(title, _uri(made.encoded("svg"), "svg+xml"), caption)


def photograph(path: Path, name: str, link: str = "") -> Picture:
    """A picture in a file, shrunk to fit, with its name and a link to the whole of it below."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((WIDTH, 10 * WIDTH))
    return Picture(name, _uri(files.encoded(image, "JPEG", quality=88), "jpeg"), name, link)


def render(template: str, **shown: Any) -> str:
    """A page.

    Args:
        template: Name of the template.
        **shown: What it shows.
    """
    script, _, _ = _TEMPLATES.loader.get_source(_TEMPLATES, "page.js") if _TEMPLATES.loader else ("", None, None)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _TEMPLATES.get_template(template).render(script=script, digest=digest, **shown)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
