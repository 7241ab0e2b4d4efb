"""What a result says of itself: one line that a terminal can hold, and a picture where a notebook can show one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from io import BytesIO
from typing import Any

from PIL import Image
from torch import Tensor

SHOWN = 8
"""Entries of a list or a mapping that a line names; of more it says how many there are."""


class Brief:
    """A dataclass, made with `repr=False`, whose repr has its tensors' shapes and dtypes instead of their numbers."""

    def __repr__(self) -> str:
        parts = (f"{each.name}={brief(getattr(self, each.name))}" for each in fields(self) if each.repr)  # type: ignore[arg-type]  # whoever inherits is a dataclass
        return f"{type(self).__name__}({', '.join(parts)})"


def brief(value: Any) -> str:
    """A value in a few words: `[2, 3, 64, 64] float32` for a tensor, at most `SHOWN` entries of anything longer."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        named = [str(key) if isinstance(key, str) else repr(key) for key in value]
        return f"{{{_few(named)}}}"
    if isinstance(value, (list, tuple)):
        ends = "[]" if isinstance(value, list) else "()"
        return f"{ends[0]}{_few([brief(each) for each in value])}{ends[1]}"
    return repr(value)


def _few(words: list[str]) -> str:
    rest = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f", and {rest} more" if rest > 0 else "")


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file's bytes, for `_repr_png_`."""
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
