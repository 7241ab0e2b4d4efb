"""Writing files that are read back: whoever reads one sees the old content or the new, never a part of either."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from softgate import files


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


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none, or it is cut short."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Writes a JSON file; whoever reads it sees the old one or the new one, never half of it."""
    files.write(json.dumps(_plain(values), indent=2) + "\n", path)  # JSON has no nan: null


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes rows as a CSV file whose columns are the keys of all rows, in the order in which they first come."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
