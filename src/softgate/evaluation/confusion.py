"""Which classes a network takes for which: counts over the measured images, as results, tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from softgate import files
from softgate.rounding import percent
from softgate.tables import Cell, Table
from softgate.training.figures import FIGURES, FiguresConfig

if TYPE_CHECKING:  # matplotlib takes time
    from softgate.figures.style import Chart

OTHER = "another class"
"""What a network of more classes than the data's may say."""

WORST = 10
"""Pairs of classes, and classes, that are listed."""

IN_RESULTS = 100
"""Classes up to which `results.json` holds the whole matrix; the CSV file always does."""


class Tally:
    """Counts, batch by batch.

    Args:
        indexes: For each of the data's K classes, its index among the network's.
        outputs: How many classes the network has.
        device: Where the logits are.
    """

    def __init__(self, indexes: Sequence[int], outputs: int, device: torch.device | str = "cpu") -> None:
        self._classes = len(indexes)
        self._place = torch.full((outputs,), self._classes, device=device)
        self._place[torch.tensor(indexes, device=device)] = torch.arange(self._classes, device=device)
        self._matrix = MulticlassConfusionMatrix(self._classes + 1).to(device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Takes logits [B, outputs] and the data's labels [B] in."""
        self._matrix.update(self._place[logits.argmax(1)], labels)

    def counts(self) -> Tensor:
        """[K, K + 1]: true classes down, predicted ones across, the last for all that the data does not have."""
        found: Tensor = self._matrix.compute()[:-1].long().cpu()
        return found


def tallied(logits: Tensor, labels: Tensor) -> Tensor:
    """[K, K + 1] as `Tally.counts`, of logits [N, K] over the data's own classes."""
    tally = Tally(range(logits.shape[1]), logits.shape[1], logits.device)
    tally.update(logits, labels.to(logits.device))
    return tally.counts()


@dataclass(frozen=True)
class Confusion:
    """What was taken for what.

    Attributes:
        names: K names of the data's classes.
        counts: [K, K + 1] as `Tally.counts` gives them; sums over several networks too.
    """

    names: Sequence[str]
    counts: Tensor

    @property
    def images(self) -> list[int]:
        """[K] images of each class."""
        return [int(count) for count in self.counts.sum(1)]

    @property
    def accuracies(self) -> list[float | None]:
        """[K] share of each class's images that is named rightly; None of a class without images."""
        right = self.counts.diagonal().tolist()
        return [hit / count if count else None for hit, count in zip(right, self.images, strict=True)]

    @property
    def columns(self) -> list[str]:
        """Names of the predicted classes; others are among them only where any was predicted."""
        return [*self.names, OTHER] if bool(self.counts[:, -1].any()) else list(self.names)

    def worst(self, most: int = WORST) -> list[tuple[int, int, int, float]]:
        """The pairs with the greatest share of a class's images: its place, the other's, the count and the share."""
        found = [
            (row, column, count, count / whole)
            for row, (counts, whole) in enumerate(zip(self.counts.tolist(), self.images, strict=True))
            for column, count in enumerate(counts)
            if column != row and count
        ]
        return sorted(found, key=lambda pair: (-pair[3], -pair[2], pair[0], pair[1]))[:most]

    def sentences(self) -> list[str]:
        """The worst pairs in words."""
        names = [*self.names, OTHER]
        return [
            f"{names[row]} for {names[column]}: {count} of {self.images[row]}, {percent(share)}"
            for row, column, count, share in self.worst()
        ]

    def plain(self) -> dict[str, Any]:
        """For `results.json`."""
        names = [*self.names, OTHER]
        each = zip(self.names, self.images, self.accuracies, strict=True)
        pairs = [
            {"true": names[row], "predicted": names[column], "images": count, "share": share}
            for row, column, count, share in self.worst()
        ]
        found: dict[str, Any] = {
            "classes": [{"class": name, "images": count, "acc": accuracy} for name, count, accuracy in each],
            "worst_pairs": pairs,
        }
        if len(self.names) <= IN_RESULTS:
            found |= {"predicted": self.columns, "matrix": self.counts[:, : len(self.columns)].tolist()}
        return found

    def chart(self, title: str = "") -> Chart:
        """The matrix as a chart."""
        from softgate.figures.confusion import confusion

        columns = self.columns
        return confusion(self.counts[:, : len(columns)].numpy(), self.names, columns, title, self.sentences())

    def classes(self) -> Table:
        """A row for each class: images, top-1, and what it is most often taken for."""
        names, every = [*self.names, OTHER], self.counts.clone()
        every.fill_diagonal_(0)
        rows: list[list[str | Cell]] = []
        for place, (images, accuracy) in enumerate(zip(self.images, self.accuracies, strict=True)):
            other = int(every[place].argmax())
            missed = int(every[place, other])
            taken = f"{names[other]}, {missed}" if missed else "–"
            rows.append([names[place], Cell(str(images), images), Cell(percent(accuracy), accuracy), taken])
        return Table(["class", "images", "top-1", "most often taken for"], rows, "classes", align="lrrl")

    def lowest(self) -> Table:
        """`classes`, of the classes that are recognised least, at most `WORST`."""
        table = self.classes()
        known = [place for place, accuracy in enumerate(self.accuracies) if accuracy is not None]
        picked = sorted(known, key=lambda place: (self.accuracies[place], place))[:WORST]
        title = "classes" if len(picked) == len(self.names) else f"the {len(picked)} classes with the lowest top-1"
        return Table(table.heads, [table.rows[place] for place in picked], title, table.align)

    def write(self, directory: Path, title: str, figures: FiguresConfig = FIGURES) -> None:
        """Writes `confusion.csv`, `classes.csv` and the chart `confusion`.

        Args:
            directory: Where to.
            title: Above the chart.
            figures: How charts become files.
        """
        files.folder(directory)
        heads = ["true class", *_apart(self.columns)]
        lines = zip(_apart(self.names), self.counts.tolist(), strict=True)
        files.write_csv(
            [dict(zip(heads, [name, *counts], strict=False)) for name, counts in lines],
            directory / "confusion.csv",
            heads,
        )
        classes = self.classes()
        files.write_csv(classes.records(), directory / "classes.csv", classes.heads)
        figures.save(self.chart(title), directory / "confusion.png")


def _apart(names: Sequence[str]) -> list[str]:
    """Names that differ: those that several classes share have their place behind them."""
    return [f"{name} ({place})" if list(names).count(name) > 1 else name for place, name in enumerate(names)]
