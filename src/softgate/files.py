"""Writing files that are read back: whoever reads one sees the old content or the new, never a part of either."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write to; at the end of the block, and only if it ends well, it takes the place of `path`.

    A process killed within leaves `path` as it was, and at most one file `path.partial` beside it.

    Raises:
        OSError: If the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the rename: a machine that fails leaves no empty file under this name
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write(content: bytes | str, path: str | Path) -> None:
    """Writes a file whole or not at all; text as UTF-8."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def save(values: Any, path: str | Path) -> None:
    """`torch.save`, whole or not at all."""
    with replacing(path) as file:
        torch.save(values, file)


def save_picture(picture: Any, path: str | Path) -> None:
    """Saves a PIL image as PNG, whole or not at all."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write(buffer.getvalue(), path)
