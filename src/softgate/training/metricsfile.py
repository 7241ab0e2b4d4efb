"""`metrics.csv`: the logger that is always on. A row stands in the file once it is logged, and can be taken back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            kept = files.read_csv(self.path) if self.rows else []
            self._columns = [*FIRST, *sorted({*self._columns, *new} - set(FIRST))]
            self._write([*kept, row])
        else:
            files.append_csv([row], self.path, self._columns)
        self.rows += 1

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def rewind(self, rows: int) -> int:
        """Takes up the file of an earlier part of the run, but only its first `rows`.

        Returns:
            How many rows were dropped.
        """
        found = files.read_csv(self.path)
        kept = found[:rows]
        self.rows = len(kept)
        self._columns = list(kept[0]) if kept else []
        self._write(kept)
        return len(found) - len(kept)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        files.write(files.csv_text(self._columns, rows) if self._columns else "", self.path)


def keep(path: Path, before: int) -> None:
    """Drops the rows of epochs from `before` on, which a resumed run will write again."""
    rows = files.read_csv(path)
    if rows:
        files.write_csv([row for row in rows if int(row["epoch"]) < before], path, list(rows[0]))
