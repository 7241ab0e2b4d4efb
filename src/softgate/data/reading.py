"""One image file of any kind that people have, as eight bits for each channel, upright and without transparency."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from softgate.errors import SoftgateError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000")
"""What a file may hold, whatever it is called; of Pillow's others some start programs."""

ANIMATED = "of images with several frames or pages the first is read"
OWN_RANGE = "images whose numbers have no known range are scaled from their least to their greatest"
"""What is done to a file that its owner may not expect, as a warning says it."""

NAMED = 10
"""Files that an error or a warning names; of further ones it gives the number."""

DEEP = ("I", "F")
"""What Pillow's modes of more than eight bits begin with; I;16 is one."""


class Picture(NamedTuple):
    """An image file that was read: the image, of mode RGB or L, and which of `ANIMATED` and `OWN_RANGE` are so."""

    image: Image.Image
    notes: tuple[str, ...]


class Unreadable(SoftgateError):
    """Image files that cannot be read.

    Args:
        broken: Each with the reason.
    """

    def __init__(self, broken: Sequence[tuple[Path, str]]) -> None:
        self.broken = list(broken)
        if len(self.broken) == 1:
            said = f"the image {self.broken[0][0]} cannot be read ({self.broken[0][1]}); delete or replace it."
        else:
            each = [f"{path} ({reason})" for path, reason in self.broken[:NAMED]]
            more = f"; and {len(self.broken) - NAMED} more" if len(self.broken) > NAMED else ""
            said = f"{len(self.broken)} images cannot be read; delete or replace them: {'; '.join(each)}{more}."
        super().__init__(f"data.root: {said}")


def read(path: Path, channels: int = 3) -> Picture:
    """Decodes an image file.

    Numbers of 16 bits are scaled from 0 to 65535, floats from 0 to 1 (or to 255, where one is above 2), others by
    their own range. What is transparent lies on white. EXIF's orientation is applied.

    Args:
        path: The file.
        channels: 3 for RGB, 1 for grey.

    Raises:
        Unreadable: If the file is cut short, is no image, is too large or cannot be read.
    """
    try:
        with Image.open(path, formats=_formats()) as file:
            # A phone's JPEG has previews as further frames.
            animated = getattr(file, "is_animated", False) and file.format != "MPO"
            if animated:
                file.seek(0)
            file.load()
            image, own = upright_on_white(file)
            notes = [note for note, so in ((ANIMATED, animated), (OWN_RANGE, own)) if so]
            return Picture(image.convert("L" if channels == 1 else "RGB"), tuple(notes))
    except MemoryError:
        raise
    except Exception as error:  # whatever Pillow's readers raise on a damaged file
        raise Unreadable([(path, _reason(path, error))]) from None


def upright_on_white(given: Image.Image) -> tuple[Image.Image, bool]:
    """An image of eight bits a channel, and whether it was scaled by its own range; see `read`."""
    image, own = _eight_bits(given) if given.mode.startswith(DEEP) else (given, False)
    return _on_white(_upright(image)), own


def each(paths: Iterable[Path], channels: int, take: Callable[[int, Image.Image], None]) -> dict[str, list[Path]]:
    """Reads many files in threads.

    Args:
        paths: The files.
        channels: As in `read`.
        take: Is given each one's number and image, in any order.

    Returns:
        What a warning should say to the files that it is about.

    Raises:
        Unreadable: For all that cannot be read.
    """

    def one(numbered: tuple[int, Path]) -> tuple[Path, tuple[str, ...], list[tuple[Path, str]]]:
        try:
            picture = read(numbered[1], channels)
        except Unreadable as error:
            return numbered[1], (), error.broken
        take(numbered[0], picture.image)
        return numbered[1], picture.notes, []

    broken: list[tuple[Path, str]] = []
    noted: dict[str, list[Path]] = {}
    with ThreadPoolExecutor(cpu_count()) as pool:
        for path, notes, bad in pool.map(one, enumerate(paths)):
            broken += bad
            for note in notes:
                noted.setdefault(note, []).append(path)
    if broken:
        raise Unreadable(broken)
    return noted


def warning(note: str, paths: Sequence[Path]) -> str:
    """The sentence for files that something is done to."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"data.root: {note} ({len(paths)}): {', '.join(map(str, paths[:NAMED]))}{more}."


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # an older Pillow has no AVIF


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is empty" if not path.stat().st_size else f"it is none of {', '.join(_formats())}"
    if isinstance(error, Image.DecompressionBombError):
        return str(error).partition(",")[0]
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.splitlines()[0] if said else type(error).__name__


def _eight_bits(image: Image.Image) -> tuple[Image.Image, bool]:
    """A grey image of more bits as one of eight, and whether it was scaled by its own range."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has numbers that are not finite")
    least, greatest = float(values.min()), float(values.max())
    top = _top(image, greatest) if least >= 0 else None
    low, high = (least, greatest) if top is None else (0.0, top)
    levels = np.rint((values - low) * (255 / ((high - low) or 1)))
    clear: Any = image.info.get("transparency")
    if isinstance(clear, int):
        levels[values == clear] = 255
    made = Image.fromarray(levels.astype(np.uint8))
    made.info["exif"] = image.info.get("exif", b"")
    return made, top is None


def _top(image: Image.Image, greatest: float) -> float | None:
    """What is white, where it is known."""
    if image.mode.startswith("F"):  # 1.1 may be a 1 that a filter overshot: no white of 255
        return 1 if greatest <= 1 else 255 if 2 < greatest <= 255 else None
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # these two say that they have 16 bits
        return 255 if greatest <= 255 else 65535 if greatest <= 65535 else None
    return 65535


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever damaged EXIF data raise; the pixels were read by now
        return image


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
