"""`metrics.csv`: the logger that is always on. A row stands in the file once it is logged, and can be taken back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from softgate import files

FIRST = ("epoch", "step")


class MetricsFile(Logger):
    """Appends each logged row at once; a new column rewrites the file, the old one standing until that is done.

    Lightning's CSVLogger deletes the file that it finds and rewrites it in place, so a run that was killed could not go
    on with its own.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows = 0
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """None of its own; it lies in the run's directory."""
        return ""

    @property
    def version(self) -> str:
        """None of its own."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends a row."""
        row = {**metrics, "step": step}
        new = sorted(set(row) - set(self._columns))
        if new or not self.path.is_file():
            kept = read(self.path) if self.rows else []
            self._columns = [*FIRST, *sorted({*self._columns, *new} - set(FIRST))]
            self._write([*kept, row])
        else:
            append(self.path, self._columns, [row])
        self.rows += 1

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def rewind(self, rows: int) -> int:
        """Takes up the file of an earlier part of the run, but only its first `rows`.

        Returns:
            How many rows were dropped.
        """
        found = read(self.path)
        kept = found[:rows]
        self.rows = len(kept)
        self._columns = list(kept[0]) if kept else []
        self._write(kept)
        return len(found) - len(kept)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write(_text(self._columns, rows) if self._columns else "", self.path)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; [] where there is none. A last row that was cut short is left out."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    return list(csv.DictReader(lines))


def append(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to a CSV file in one write, under a header where the file is new; other keys are left out."""
    text = _text(columns, rows, header=not path.is_file())
    with path.open("a", newline="") as file:
        file.write(text)


def keep(path: Path, before: int) -> None:
    """Drops the rows of epochs from `before` on, which a resumed run will write again."""
    rows = read(path)
    if rows:
        files.write(_text(list(rows[0]), [row for row in rows if int(row["epoch"]) < before]), path)


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    made = io.StringIO(newline="")
    table = csv.DictWriter(made, columns, restval="", extrasaction="ignore")
    if header:
        table.writeheader()
    table.writerows(rows)
    return made.getvalue()
