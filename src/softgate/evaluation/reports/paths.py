"""The tables of `paths=full`, for the terminal and for `report.html`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from softgate.evaluation.config import PathsConfig
from softgate.evaluation.reports import pages
from softgate.evaluation.reports.path_results import GATES, Kernels, Stability, per_site
from softgate.figures.style import Chart
from softgate.paths.swapping import CONTROLS
from softgate.rounding import rounded
from softgate.tables import Table


def tables(found: Sequence[Stability], runs: Sequence[Mapping[str, Any]], options: PathsConfig) -> list[Table]:
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


def page(every: Sequence[Table], pictures: Mapping[str, Chart]) -> str:
    """All tables and pictures as HTML: no script, no address of another file.

    Args:
        every: From `tables`.
        pictures: Name to chart.
    """
    shown = [pages.chart(made, name, name) for name, made in pictures.items()]
    return pages.render("paths.html", tables=every, pictures=shown)


def settled(runs: Sequence[Mapping[str, Any]], options: PathsConfig) -> Table:
    """For every run from which epoch on its paths are settled, and whether Gamma is ahead of G at the beginning."""
    heads = ["run", "trained", "settled, G", "settled, Gamma", "Gamma - G, first moment"]
    rows = []
    for one in runs:
        cells = [_interval(one["swap"][kind]["settled"]) for kind in GATES]
        early = [part[1] for part in one["soft_minus_hard"]]
        rows.append([one["label"], one["trained"], *cells, _interval(early, signed=True)])
    said = f"settled: epoch from which on within-class swap stays above {options.threshold}, {options.probe} images"
    return Table(heads, rows, said)


def measures(one: Stability) -> dict[str, Sequence[float]]:
    """What a run's table says: measure to one value for each moment."""
    swaps, last = one.swaps, len(one.comparison.points) - 1
    places = [one.comparison.points.index(point) for point in swaps.points]
    rows: dict[str, Sequence[float]] = {"accuracy of network s": swaps.correct.tolist()}
    for kind in GATES:
        rows[f"swap {kind}, within class"] = swaps.curve(kind, True, 1)[0]
        rows[f"swap {kind}, pooled"] = swaps.curve(kind, False, 1)[0]
    rows["swap hard minus its greatest control, within"] = swaps.margin("hard", True, 2)[0]
    for name in CONTROLS[:-1]:
        rows[f"control, hard, within: {name}"] = swaps.control("hard", name, True)
        rows[f"control, hard, pooled: {name}"] = swaps.control("hard", name, False)
    rows["kappa with the last gates"] = [float(one.comparison.overall[1][i, last]) for i in places]
    for kind, name in GATES.items():
        rows[f"path cosine per site of {name}(s)"] = per_site(swaps.log_cosine[kind], one.comparison)
        rows[f"AUC for the last gates, {name}(s)"] = swaps.gate_auc(kind)
    return rows


def arms(found: Sequence[Stability]) -> list[Table]:
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
            cells = [f"{rounded(sum(c) / len(c))} [{rounded(min(c))}, {rounded(max(c))}]" for c in columns]
            rows.append([name, *cells])
        heads = ["gates of epoch s", *(f"{epoch:.2g}" for epoch in epochs.pop())]
        made.append(Table(heads, rows, f"trained {arm}, mean of {len(mine)} runs; into the last network"))
    return made


def _run(one: Stability) -> Table:
    heads = ["gates of epoch s", *(f"{point.epoch:.2g}" for point in one.swaps.points)]
    rows = [[name, *map(rounded, values)] for name, values in measures(one).items()]
    return Table(heads, rows, f"paths of {one.label}, trained {one.trained}; into the last network")


def _kernels(one: Stability, kernels: Kernels, options: PathsConfig) -> Table:
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
    return Table(heads, [[name, *map(rounded, values)] for name, values in rows], title)


def _interval(values: Sequence[float | None], signed: bool = False) -> str:
    def said(value: float | None) -> str:
        if value is None or math.isnan(value):
            return "never"
        return rounded(value, signed)

    value, low, high = values
    return f"{said(value)} [{said(low)}, {said(high)}]"
