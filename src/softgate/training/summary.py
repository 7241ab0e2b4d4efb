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

from softgate.errors import SoftgateError, is_number
from softgate.figures import panels as charts
from softgate.figures.style import Chart
from softgate.tables import Table, cell
from softgate.training.figures import FIGURES, FiguresConfig

GRADIENT, MEMORY = "gradient_norm", "gpu_memory_gb"
"""What `Vitals` logs after each epoch."""

PANELS = {
    "loss": {"train": "train/loss", "val": "val/loss"},
    "accuracy": {"train": "train/acc", "val": "val/acc"},
    "learning rate": {"learning rate": "lr"},
    "gradient norm": {"gradient norm": GRADIENT},
    "GPU memory, greatest so far, GB": {"GPU memory": MEMORY},
}
"""Of `curves.png`: title to line to metric."""

RANGES: Mapping[str, charts.Range] = {
    "loss": (0, None),
    "accuracy": (0, 1),
    "learning rate": (0, None),
    "gradient norm": (0, None),
    "GPU memory, greatest so far, GB": (0, None),
}
"""What the values of a panel can be."""

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


def save_curves(
    points: Mapping[str, list[tuple[float, float]]], path: Path, title: str, figures: FiguresConfig = FIGURES
) -> bool:
    """Draws a run over its epochs, counted from 1 as on the terminal; the best one is marked.

    Args:
        points: From `history`.
        path: The file; its ending is that of each format.
        title: A line above the panels.
        figures: How charts become files.

    Returns:
        False where there is nothing to draw yet.
    """
    chart = curves(points, title)
    if chart is None:
        return False
    figures.save(chart, path)
    return True


def curves(points: Mapping[str, list[tuple[float, float]]], title: str) -> Chart | None:
    """The chart of `save_curves`; None where there is nothing to draw yet."""
    from softgate.metrics.control_table import POSSIBLE, titled  # PyTorch, for which a sweep's own process has no use

    counted = {key: [(epoch + 1, value) for epoch, value in values] for key, values in points.items()}
    first = {
        name: {line: charts.Line(counted[key]) for line, key in lines.items() if counted.get(key)}
        for name, lines in PANELS.items()
    }
    if not any(first.values()):
        return None
    alignment = {titled(metric): lines for metric, lines in alignment_panels(counted).items()}
    ranges = {**RANGES, **{titled(metric): ends for metric, ends in POSSIBLE.items()}}
    best = summarize(points).get("best/epoch")
    return charts.draw(first | alignment, title, ranges=ranges, best=None if best is None else best + 1)


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
