"""Words in any script: which installed font has their letters, and what stands for those that none has.

Pictures are drawn in matplotlib's own typeface, which has Latin, Greek, Cyrillic and more, but no Chinese, Japanese or
Korean letter. For such letters the fonts that are installed here are searched, once.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from softgate.errors import SoftgateWarning

OWN = "DejaVu Sans"
"""Matplotlib's own typeface, which comes with it."""

PACKAGES = dict.fromkeys(
    ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH"), "fonts-noto-cjk"
)
"""First word of a letter's Unicode name to a package of Debian's and Ubuntu's with a font that has it."""

OTHERS = "fonts-noto-core"
"""The package that has most other scripts."""

BOXES = "Last Resort"
"""A typeface that comes with matplotlib and has a box in the place of every letter there is."""

_said: set[str] = set()


@lru_cache(maxsize=4)
def own(bold: bool = False) -> str:
    """The file of matplotlib's own typeface."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


@lru_cache(maxsize=256)
def _letters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a font that FreeType does not read
        return frozenset()


def _covers(path: str, letter: str) -> bool:
    return letter.isspace() or ord(letter) in _letters(path)


@lru_cache(maxsize=4096)
def file_of(letter: str, bold: bool = False) -> str | None:
    """The file of a font that has a letter, matplotlib's own before others; None where none has."""
    first = own(bold)
    if _covers(first, letter):
        return first
    every = [font for font in font_manager.fontManager.ttflist if not font.name.startswith(BOXES)]
    every.sort(key=lambda font: (font.style != "normal", _off(font.weight, bold)))
    return next((font.fname for font in every if _covers(font.fname, letter)), None)


def _off(weight: str | int, bold: bool) -> int:
    number = weight if isinstance(weight, int) else font_manager.weight_dict.get(weight, 400)
    return abs(number - (700 if bold else 400))


def forget() -> None:
    """Searches anew, after a font was added to matplotlib's list."""
    file_of.cache_clear()
    _said.clear()


def replaced(words: str, bold: bool = False) -> str:
    """Words with each letter that no installed font has written as its number, such as U+732B, and a warning once."""
    lacking = [letter for letter in dict.fromkeys(words) if letter.isprintable() and file_of(letter, bold) is None]
    for letter in lacking:
        name = unicodedata.name(letter, "")
        package = PACKAGES.get(name.replace("-", " ").partition(" ")[0], OTHERS)
        if package not in _said:
            _said.add(package)
            warnings.warn(
                f"no installed font has {letter!r}: pictures write U+{ord(letter):04X}; "
                f"install a font that has it, such as that of the package {package}.",
                SoftgateWarning,
                stacklevel=2,
            )
        words = words.replace(letter, f"U+{ord(letter):04X} ")
    return words.rstrip() if lacking else words


def runs(words: str, bold: bool = False) -> list[tuple[str, str]]:
    """Words in parts, each with the file of a font that has its letters; blanks go with what is before them.

    Letters that no font has must be `replaced` before.
    """
    found: list[tuple[str, str]] = []
    for letter in words:
        last = found[-1][1] if found else own(bold)
        path = last if _covers(last, letter) and (letter.isspace() or last == own(bold)) else file_of(letter, bold)
        path = path or own(bold)
        if found and found[-1][1] == path:
            found[-1] = found[-1][0] + letter, path
        else:
            found.append((letter, path))
    return found


def readable(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines as a chart can show them, and the families that it takes for them, in the order of preference."""
    shown = [replaced(line) for line in lines]
    paths = dict.fromkeys(path for line in shown for _, path in runs(line) if path != own())
    return shown, [OWN, *(font_manager.get_font(path).family_name for path in paths)]
