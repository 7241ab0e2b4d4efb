"""Writing files: whoever reads one sees the old content or the new, never a part of either.

Every file that softgate writes goes through here. Only `append_csv` adds to a file in place, whole rows in one write.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from softgate.errors import CannotWrite

LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
"""What a run goes on from, in its directory."""

FIRST_WORDS = Path(".hydra", "overrides.yaml")
"""Where Hydra keeps the words that a run began with."""


@contextmanager
def refusals(path: str | Path) -> Iterator[None]:
    """Turns what the system has against writing within into one sentence that names `path`.

    Raises:
        CannotWrite: If the disk is full, the folder is gone or cannot be written, the name is too long.
    """
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(f"{path}: cannot be written: {error.strerror or error}.") from error


def folder(path: str | Path, parents: bool = True) -> Path:
    """Makes a folder where there is none, and gives its path.

    Args:
        path: The folder.
        parents: Whether folders above it are made too; otherwise it is an error if there are none.

    Raises:
        CannotWrite: If it cannot be made.
    """
    with refusals(path):
        Path(path).mkdir(parents=parents, exist_ok=True)
    return Path(path)


def new_folder(path: Path) -> Path:
    """Makes a folder that nobody else has: `path`, or `path-2`, `path-3`, ... where that is there.

    Raises:
        CannotWrite: If it cannot be made.
    """
    folder(path.parent)
    made, number = path, 1
    while True:
        with refusals(made):
            try:
                made.mkdir()
                return made
            except FileExistsError:
                number += 1
                made = path.with_name(f"{path.name}-{number}")


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write to; at the end of the block, and only if it ends well, it takes the place of `path`.

    A process killed within leaves `path` as it was, and at most one file `path.partial` beside it.

    Raises:
        CannotWrite: If the disk is full, or the folder is gone or cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with refusals(path):
            partial.unlink(missing_ok=True)  # of a process that was killed; or a link, through which nothing is written
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # before the rename: a machine that fails leaves no empty file of this name
            partial.replace(path)
    except BaseException:
        with suppress(OSError):  # whatever keeps it there, the first error is the one to tell
            partial.unlink()
        raise


def write(content: bytes | str, path: str | Path) -> None:
    """Writes a file whole or not at all; text as UTF-8."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def save(values: Any, path: str | Path) -> None:
    """`torch.save`, whole or not at all."""
    import torch  # takes seconds, which a command that is refused need not wait

    with replacing(path) as file:
        try:
            torch.save(values, file)
        except RuntimeError as error:  # PyTorch's own phrase for a disk that took a part only
            if "inline_container" not in str(error):
                raise
            raise CannotWrite(f"{path}: cannot be written: the disk took only a part of it.") from error


def load(path: str | Path) -> Any:
    """What `save` wrote, read with `weights_only`: nothing in the file is run, and no more is read than it holds.

    Raises:
        ValueError: If its content is packed, so that a small file could fill the memory.
        Exception: Whatever a file that is cut short, or no such file, makes the unpickler raise.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            sizes = sum(entry.file_size for entry in archive.infolist())
        if sizes > Path(path).stat().st_size:
            raise ValueError(f"it is {Path(path).stat().st_size} bytes that unpack to {sizes}")
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def save_picture(picture: Any, path: str | Path) -> None:
    """Saves a PIL image as PNG, whole or not at all."""
    write(encoded(picture, "PNG"), path)


def packed(values: Any) -> bytes:
    """What `save` would write, as bytes."""
    import torch  # as in `save`

    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def encoded(picture: Any, kind: str, **options: Any) -> bytes:
    """A PIL image as the bytes of a file.

    Args:
        picture: The image.
        kind: PIL's name of the format.
        **options: Of the format, such as `quality`.
    """
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none, or it is cut short."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(values: Mapping[str, Any] | Sequence[Any], path: Path) -> None:
    """Writes a JSON file; what is not finite is null, for JSON has no such numbers."""
    write(json.dumps(_plain(values), indent=2) + "\n", path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; [] where there is none. A last row that was cut short is left out."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [{as_given(key): as_given(value) for key, value in row.items()} for row in csv.DictReader(lines)]


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path, columns: Sequence[str] | None = None) -> None:
    """Writes rows as a CSV file.

    Args:
        rows: Column to value. What a row lacks is left empty, and what is no column is left out.
        path: The file.
        columns: In order; None for the keys of all rows, in the order in which they first come.
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    write(csv_text(columns, rows), path)


def append_csv(rows: Iterable[Mapping[str, Any]], path: Path, columns: Sequence[str]) -> None:
    """Adds rows to a CSV file in one write, under a header where the file is new; as `write_csv` otherwise."""
    text = csv_text(columns, rows, header=not path.is_file())
    with refusals(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    """Rows as the text of a CSV file, lines ending as RFC 4180 has them.

    A text that a spreadsheet would calculate, such as `=1+1`, has an apostrophe in front; `read_csv` takes it off.
    """
    made = io.StringIO(newline="")
    table = csv.writer(made)
    if header:
        table.writerow(map(_as_text, columns))
    table.writerows([_as_text(row.get(column, "")) for column in columns] for row in rows)
    return made.getvalue()


_FORMULA = re.compile(r"'*[=+\-@\t\r＝＋－＠]")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)?( ?(%|pp))?", re.IGNORECASE)


def _as_text(value: Any) -> Any:
    formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def as_given(value: Any) -> Any:
    """A cell of a CSV file as it was when it was written: without the apostrophe before a formula."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and _FORMULA.match(value) else value
