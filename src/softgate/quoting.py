"""Paths as words of Hydra's: quoted, whatever is in them."""

from __future__ import annotations

import re
from pathlib import Path


def quoted(path: Path) -> str:
    """A path as a word of Hydra's that may hold blanks, quotes and other marks."""
    # A backslash is one by itself, except in front of a quote.
    marks = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), str(path))
    return f'"{marks}"'


def unquoted(value: str) -> str:
    """What a word of Hydra's says, quoted or not."""
    quote = value[:1]
    if len(value) < 2 or quote not in ("'", '"') or value[-1] != quote:
        return value
    return re.sub(rf"(\\+)({quote}|$)", lambda found: "\\" * (len(found[1]) // 2) + found[2], value[1:-1])
