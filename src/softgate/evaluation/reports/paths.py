"""The tables of `paths=full`, for the terminal and for `report.html`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from softgate.evaluation.config import PathsConfig
from softgate.evaluation.reports import comparison
from softgate.evaluation.reports.path_results import GATES, Kernels, Stability, per_site
from softgate.paths.swapping import CONTROLS

READ = """<p class=small>Swap: the correlation over images of the last network's logits with those of the same network
run with the gates of epoch s. Settled: the first recorded epoch from which on it stays above the threshold, within
classes, with hard gates G or soft gates Gamma; never: not even at the end. A swap means nothing where it is not above
its controls. Brackets after an epoch: 95 % bootstrap over images; after a mean: least and greatest run.</p>"""


@dataclass(frozen=True)
class Made:
    """A table: a title, the heads of its columns, its rows of words."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(found: Sequence[Stability], runs: Sequence[Mapping[str, Any]], options: PathsConfig) -> list[Made]:
    """All tables: when paths settle, means over the runs of each arm, and each run by itself.

    Args:
        found: What was found of the runs.
        runs: The same as `results.json` has it.
        options: Of the study.
    """
    made = [settled(runs, options), *arms(found)]
    for one in found:
        made.append(_run(one))
        if one.kernels is not None:
            made.append(_kernels(one, one.kernels, options))
    return made


def show(every: Sequence[Made], console: Console) -> None:
    """Prints tables."""
    for one in every:
        made = Table(title=one.title, title_justify="left", title_style="bold", box=box.SIMPLE)
        for place, head in enumerate(one.heads):
            made.add_column(head, justify="left" if place == 0 else "right")
        for row in one.rows:
            made.add_row(*row)
        console.print(made)


def write_page(every: Sequence[Made], pictures: Mapping[str, Path], path: Path) -> None:
    """Writes all tables and pictures into one HTML file."""
    first, *others = [comparison.section(one.title, comparison.tabled(one.heads, one.rows)) for one in every]
    shown = "".join(comparison.photograph(file, name) for name, file in pictures.items())
    parts = ["<h1>When do the paths settle?</h1>", READ, first, shown, *others]
    partial = path.with_suffix(".partial")
    partial.write_text(comparison.document("softgate: path stability", parts), encoding="utf-8")
    partial.replace(path)


def settled(runs: Sequence[Mapping[str, Any]], options: PathsConfig) -> Made:
    """For every run from which epoch on its paths are settled, and whether Gamma is ahead of G at the beginning."""
    heads = ["run", "trained", "settled, G", "settled, Gamma", "Gamma - G, first moment"]
    rows = []
    for one in runs:
        cells = [_interval(one["swap"][kind]["settled"]) for kind in GATES]
        early = [part[1] for part in one["soft_minus_hard"]]
        rows.append([one["label"], one["trained"], *cells, _interval(early, signed=True)])
    return Made(f"settled: epoch from which on within-class swap stays above {options.threshold}", heads, rows)


def measures(one: Stability) -> dict[str, Sequence[float]]:
    """What a run's table says: measure to one value for each moment."""
    swaps, last = one.swaps, len(one.comparison.points) - 1
    places = [one.comparison.points.index(point) for point in swaps.points]
    rows: dict[str, Sequence[float]] = {"accuracy of network s": swaps.correct.tolist()}
    for kind in GATES:
        rows[f"swap {kind}, within class"] = swaps.curve(kind, True, 1)[0]
        rows[f"swap {kind}, pooled"] = swaps.curve(kind, False, 1)[0]
    for name in CONTROLS[:3]:
        rows[f"control, hard, within: {name}"] = swaps.control("hard", name, True)
        rows[f"control, hard, pooled: {name}"] = swaps.control("hard", name, False)
    rows["kappa with the last gates"] = [float(one.comparison.overall[1][i, last]) for i in places]
    for kind, name in GATES.items():
        rows[f"path cosine per site of {name}(s)"] = per_site(swaps.log_cosine[kind], one.comparison)
        rows[f"AUC for the last gates, {name}(s)"] = swaps.gate_auc(kind)
    return rows


def arms(found: Sequence[Stability]) -> list[Made]:
    """Means over the runs of each arm, with the least and the greatest; where they were recorded at the same epochs."""
    made = []
    for arm in GATES:
        mine = [one for one in found if one.trained == arm]
        epochs = {tuple(point.epoch for point in one.swaps.points) for one in mine}
        if len(mine) < 2 or len(epochs) != 1:
            continue
        every = [measures(one) for one in mine]
        rows = []
        for name in every[0]:
            columns = zip(*(each[name] for each in every), strict=True)
            cells = [f"{sum(c) / len(c):.2f} [{min(c):.2f}, {max(c):.2f}]" for c in columns]
            rows.append([name, *cells])
        heads = ["gates of epoch s", *(f"{epoch:.2g}" for epoch in epochs.pop())]
        made.append(Made(f"trained {arm}, mean of {len(mine)} runs; into the last network", heads, rows))
    return made


def _run(one: Stability) -> Made:
    heads = ["gates of epoch s", *(f"{point.epoch:.2g}" for point in one.swaps.points)]
    rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in measures(one).items()]
    return Made(f"paths of {one.label}, trained {one.trained}; into the last network", heads, rows)


def _kernels(one: Stability, kernels: Kernels, options: PathsConfig) -> Made:
    rows = [("accuracy of the network", kernels.own)]
    for kind, name in GATES.items():
        rows.append((f"accuracy of K_{name}", kernels.accuracy[kind]))
        rows.append((f"alignment of K_{name} with labels", kernels.alignment[kind]))
        rows.append((f"CKA of K_{name} with the last", [row[-1] for row in kernels.cka[kind]]))
    same = len(kernels.points)  # the pixels do not change
    rows.append(("control: accuracy of <x, x'>", [kernels.pixels["accuracy"]] * same))
    rows.append(("control: alignment of <x, x'>", [kernels.pixels["label_alignment"]] * same))
    heads = ["epoch", *(f"{point.epoch:.2g}" for point in kernels.points)]
    title = f"path kernels of {one.label}, trained {one.trained}, {options.kernel_images} images"
    return Made(title, heads, [[name, *(f"{value:.2f}" for value in values)] for name, values in rows])


def _interval(values: Sequence[float | None], signed: bool = False) -> str:
    def said(value: float | None) -> str:
        if value is None or math.isnan(value):
            return "never"
        return f"{value:+.2f}" if signed else f"{value:.2g}"

    value, low, high = values
    return f"{said(value)} [{said(low)}, {said(high)}]"
