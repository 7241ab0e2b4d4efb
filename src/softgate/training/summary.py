"""What a run tells its user: the config as a tree, the summary, the curves."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from softgate import files
from softgate.errors import SoftgateError, is_number
from softgate.figures import panels as charts
from softgate.figures import training
from softgate.tables import Table, cell

PANELS = {
    "loss": {"train": "train/loss", "val": "val/loss"},
    "accuracy": {"train": "train/acc", "val": "val/acc"},
}

OBJECTIVE = "best/val/acc"
"""The entry of the summary that a search maximises and a sweep's table shows."""


def print_tree(config: Mapping[str, Any], console: Console) -> None:
    """Prints a config as a tree."""

    def grow(tree: Tree, node: Mapping[str, Any]) -> None:
        for key, value in node.items():
            if isinstance(value, Mapping):
                grow(tree.add(f"[bold]{escape(str(key))}"), value)
            else:
                tree.add(f"{escape(str(key))}: [cyan]{escape(str(value))}[/]")

    tree = Tree("[bold]config")
    grow(tree, config)
    console.print(tree)


def history(metrics: Path) -> dict[str, list[tuple[float, float]]]:
    """Reads `metrics.csv`: metric name to (epoch, value), one for each epoch.

    Raises:
        SoftgateError: If the file is damaged.
    """
    found: dict[str, dict[float, float]] = {}
    try:
        with metrics.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                epoch = row.get("epoch")
                for key, value in row.items():
                    if key not in ("epoch", "step") and value and epoch:
                        found.setdefault(key, {})[float(epoch)] = float(value)
    except (ValueError, TypeError, csv.Error):  # bytes that are no text, a word that is no number, a row too long
        raise SoftgateError(f"{metrics} is damaged.") from None
    return {key: sorted(points.items()) for key, points in found.items()}


def save_curves(points: Mapping[str, list[tuple[float, float]]], path: Path, title: str) -> bool:
    """Draws loss and accuracy over epochs; false where there is nothing to draw yet."""
    panels = {name: {line: points.get(key, []) for line, key in lines.items()} for name, lines in PANELS.items()}
    if not any(any(lines.values()) for lines in panels.values()):
        return False
    alignment = alignment_panels(points)
    if alignment:
        first = {name: {line: charts.Line(xy) for line, xy in panel.items()} for name, panel in panels.items()}
        files.save_picture(charts.draw(first | alignment, title), path)
        return True
    files.save_picture(training.curves(panels, title), path)
    return True


def alignment_panels(points: Mapping[str, list[tuple[float, float]]]) -> dict[str, dict[str, charts.Line]]:
    """One panel for each metric of the alignment callback: the hard and the soft read-out with their intervals."""
    panels: dict[str, dict[str, charts.Line]] = {}
    for key, values in points.items():
        head, _, rest = key.partition("/")
        readout, _, metric = rest.partition("/")
        if head == "align" and not metric.endswith(("_low", "_high")):
            ends = points.get(f"{key}_low", []), points.get(f"{key}_high", [])
            panels.setdefault(metric, {})[readout] = charts.Line(values, *ends)
    return {metric: dict(sorted(panels[metric].items())) for metric in sorted(panels)}


def summarize(points: Mapping[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Final values under their plain keys, and the best epoch under `best/`."""
    summary: dict[str, Any] = {key: values[-1][1] for key, values in points.items() if not key.endswith("_step")}
    if points.get("val/acc"):
        epoch, best = max(points["val/acc"], key=lambda point: (point[1], -point[0]))
        summary |= {"best/epoch": int(epoch), "best/val/acc": best}
    return summary


def number(summary: Mapping[str, Any], key: str) -> float | None:
    """An entry of a summary that was read from a file; None where it is no finite number."""
    value = summary.get(key)
    return float(value) if is_number(value) and math.isfinite(value) else None


def table(title: str, rows: Mapping[str, Any]) -> Table:
    """Names and values, without heads."""
    return Table(["", ""], [[key, cell(value)] for key, value in rows.items()], title, align="ll")
