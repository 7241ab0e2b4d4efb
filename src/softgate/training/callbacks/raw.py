"""The raw tensors of grids: a file for each epoch, of no more epochs than a run is to keep."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from softgate import files
from softgate.training.callbacks.thinning import stay

BUDGET = 50e6
"""Bytes of raw tensors that a run keeps where its user has not said how many epochs."""

FEWEST = 2
"""Epochs that are kept whatever they take: the first and the last."""


class RawTensors:
    """`epoch=NNN.pt` beside each picture; the files of epochs that are not kept go as new ones come.

    Args:
        directory: Where they lie.
        keep: Of how many epochs; "all", or "auto" for as many as 50 MB hold, and two at least.
    """

    def __init__(self, directory: Path, keep: int | str) -> None:
        self.directory, self.keep = directory, keep
        self.epochs: list[int] = []

    def load(self, before: int) -> None:
        """Takes note of the files of epochs before `before` that an earlier part of the run left."""
        names = (re.fullmatch(r"epoch=(\d{3,9})\.pt", path.name) for path in self.directory.glob("epoch=*.pt"))
        self.epochs = sorted({int(name[1]) for name in names if name and int(name[1]) < before})

    def add(self, epoch: int, tensors: dict[str, Any], last: int | None) -> Path:
        """Saves an epoch's tensors, and deletes those that are to go for it.

        Args:
            epoch: Which epoch.
            tensors: Plain data for `torch.save`.
            last: The last epoch of the run as planned; None where that is not known.

        Returns:
            The epoch's file.
        """
        path = self._path(epoch)
        files.save(tensors, path)
        self.epochs = sorted({*self.epochs, epoch})
        if self.keep != "all":
            most = max(FEWEST, int(BUDGET // path.stat().st_size)) if self.keep == "auto" else int(self.keep)
            kept = stay(self.epochs, most, last)
            for each in sorted({*self.epochs} - {*kept}):
                self._path(each).unlink(missing_ok=True)
            self.epochs = kept
        return path

    def _path(self, epoch: int) -> Path:
        return self.directory / f"epoch={epoch:03d}.pt"
