"""The study's pictures: differences with intervals over all cells, what each rate gave, and what training changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy import stats

from generalization_study.ledger import Ledger
from generalization_study.plan import Plan
from softgate.figures import style

if TYPE_CHECKING:
    from generalization_study.report import CellReport

MANY = 5
"""So many arms of a cell have a line in the picture of the mechanism: the first of the plan, the random gates too."""

PANELS: dict[str, tuple[str, str]] = {
    "dead": ("dead units, %", "percent"),
    "died": ("died since the moment before, %", "percent"),
    "revived": ("revived since the moment before, %", "percent"),
    "gradient_cosine": ("cosine of surrogate and true gradient", "linear"),
    "gradient_norm_ratio": ("norm, surrogate over true gradient", "log"),
    "noise_scale_rule": ("noise scale of the run's gradient, images", "noise"),
    "noise_scale_true": ("noise scale of the true gradient, images", "noise"),
    "sharpness": ("sharpness", "log"),
    "kappa": ("gates: kappa with the last network", "linear"),
    "swap": ("swap into the last network", "linear"),
    "swap_same_class": ("swap, gates of another image of the class", "linear"),
    "swap_function": ("f of the moment with f at the end", "linear"),
    "noise_cosine_hard": ("stability, hard read-out", "linear"),
    "noise_cosine_soft": ("stability, soft read-out", "linear"),
    "high_frequency_hard": ("high frequencies, hard read-out", "linear"),
    "high_frequency_soft": ("high frequencies, soft read-out", "linear"),
}
"""Measure to what its panel is called, and how it is averaged and shown."""


@style.context()
def forest(plan: Plan, cells: Sequence[CellReport]) -> Image.Image | None:
    """Differences of top-1 from the baseline, in points: dot, 95 % interval, a tick for each seed, by cell.

    The grey band is what is too small to be of interest. Primary contrasts are filled, others hollow. None where
    nothing is compared.
    """
    shown = [cell for cell in cells if cell.top]
    if not shown:
        return None
    lines = sum(len(cell.top) + 1 for cell in shown)
    figure = style.figure(7.5, 0.9 + 0.3 * lines)
    axes = figure.add_subplot()
    place, ticks = 0.0, []
    for cell in shown:
        small = 100 * cell.smallest
        band = (place + 0.4, place + len(cell.top) + 0.6)
        axes.fill_betweenx(band, -small, small, color="#dddddd", linewidth=0)
        axes.text(0.005, place, f"cell {cell.name}", transform=axes.get_yaxis_transform(), fontsize=9, va="center")
        for arm, one in cell.top.items():
            place += 1
            ink = style.ARMS[list(plan.arms).index(arm) % len(style.ARMS)]
            found = one.difference
            axes.plot(
                [100 * each for each in found.deltas], [place + 0.25] * len(found.deltas), "|", color=ink, alpha=0.6
            )
            if math.isfinite(found.low):
                axes.plot((100 * found.low, 100 * found.high), (place, place), color=ink, linewidth=2)
            face = ink if plan.primary(cell.name, arm) else "white"
            axes.plot(100 * found.mean, place, "o", color=ink, markerfacecolor=face, markersize=6)
            ticks.append((place, arm.replace("_", " ")))
        place += 1.2
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8)
    axes.set_ylim(place - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("top-1 minus the true gradient's, points", fontsize=9)
    return style.picture(figure)


@style.context()
def rates(plan: Plan, ledger: Ledger) -> Image.Image | None:
    """Mean accuracy on the tune images over the rate, a line for each arm, a panel for each cell; None without any."""
    rows = list(ledger.rows.values())
    found = {}
    for cell, about in plan.cells.items():
        lines = {arm: plan.choice(cell, arm, rows).means for arm in about["arms"]}
        if any(lines.values()):
            found[cell] = lines
    if not found:
        return None
    across = min(3, len(found))
    down = -(-len(found) // across)
    figure = style.figure(4.2 * across, 3.4 * down)
    for number, (cell, lines) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(down, across, number)
        for arm, means in lines.items():
            if means:
                place = list(plan.arms).index(arm)
                kind, ink = "o-" if place < len(style.ARMS) else "s--", style.ARMS[place % len(style.ARMS)]
                x, y = zip(*sorted(means.items()), strict=True)
                axes.plot(x, [100 * value for value in y], kind, color=ink, markersize=3, label=arm.replace("_", " "))
        axes.set_xscale("log", base=2)
        tried = sorted({rate for means in lines.values() for rate in means})
        axes.set_xticks(tried, [f"{rate:.3g}" for rate in tried])
        axes.set_title(f"cell {cell}", fontsize=9)
        axes.set_xlabel("rate", fontsize=8)
        axes.set_ylabel("top-1 on tune images, %", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=6)
    return style.picture(figure)


@style.context()
def mechanism(plan: Plan, cell: CellReport) -> Image.Image | None:
    """What was measured while a cell's final runs were trained: a panel for each measure, a line for each arm.

    Means over seeds with 95 % intervals (t over seeds) of the first arms of the plan, over the moments, which are
    spread evenly on a log scale of epochs. Sharpness and ratios of norms are averaged as logarithms; the noise scale is
    the quotient of its parts' means, its interval a jackknife's. None where nothing was measured.
    """
    arms = {arm: list(of.values()) for arm, of in cell.rows.items() if any("mechanism" in row for row in of.values())}
    shown = [arm for arm in plan.cells[cell.name]["arms"][:MANY] if arm in arms]
    epochs = sorted({one["epoch"] for arm in shown for row in arms[arm] for one in row.get("mechanism", ())})
    if not epochs:
        return None
    across = 4
    down = -(-len(PANELS) // across)
    figure = style.figure(3.3 * across, 2.4 * down + 0.4)
    for number, (name, (title, how)) in enumerate(PANELS.items(), start=1):
        axes = figure.add_subplot(down, across, number)
        for arm in shown:
            ink = style.ARMS[list(plan.arms).index(arm) % len(style.ARMS)]
            found = np.array([over_seeds(arms[arm], epoch, name, how) for epoch in epochs])
            kind = "o--" if arm.endswith("_gate") else "o-"  # controls
            axes.plot(range(len(epochs)), found[:, 0], kind, color=ink, markersize=2.5, linewidth=1, label=arm)
            axes.fill_between(range(len(epochs)), found[:, 1], found[:, 2], color=ink, alpha=0.15, linewidth=0)
        if how in ("log", "noise"):
            axes.set_yscale("log")
        elif how == "percent":
            axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=8)
        axes.set_xticks(range(len(epochs)), [f"{epoch:.2g}" for epoch in epochs])
        axes.tick_params(labelsize=7)
        if number > len(PANELS) - across:
            axes.set_xlabel("epochs done", fontsize=8)
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, [name.replace("_", " ") for name in names], loc="outside upper center", ncols=MANY, fontsize=8)
    return style.picture(figure)


def over_seeds(rows: Sequence[Mapping[str, Any]], epoch: float, name: str, how: str) -> tuple[float, float, float]:
    """Mean of a measure at a moment over the runs of an arm, and the ends of its 95 % interval; NaN where none has it.

    Args:
        rows: The runs.
        epoch: The moment.
        name: The measure.
        how: "linear", "percent" (of a share), "log" (a geometric mean) or "noise" (a noise scale: from its two parts).
    """
    moments = [one for row in rows for one in row.get("mechanism", ()) if one["epoch"] == epoch]
    if how == "noise":
        return _noise_scale(moments, name.removeprefix("noise_scale_"))
    values = np.array([float(one[name]) for one in moments if math.isfinite(one.get(name, math.nan))])
    if how == "log":
        values = np.log(values[values > 0])
    if not len(values):
        return math.nan, math.nan, math.nan
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    low, high = interval(values.mean(), error, len(values))
    found = np.array([values.mean(), low, high])
    return tuple(np.exp(found) if how == "log" else found * (100 if how == "percent" else 1))


def _noise_scale(moments: Sequence[Mapping[str, Any]], which: str) -> tuple[float, float, float]:
    """B_simple from both parts' means over the runs: a mean of quotients would be biased, and lack those below zero."""
    names = f"noise_trace_{which}", f"gradient_square_{which}"
    parts = np.array([[float(one.get(name, math.nan)) for name in names] for one in moments]).reshape(-1, 2)
    each = parts[np.isfinite(parts).all(1)]
    if not len(each) or each[:, 1].mean() <= 0:
        return math.nan, math.nan, math.nan
    middle = math.log(each[:, 0].mean() / each[:, 1].mean())
    if len(each) < 2:
        return math.exp(middle), math.nan, math.nan
    others = (each.sum(0) - each) / (len(each) - 1)
    if (others[:, 1] <= 0).any():
        return math.exp(middle), math.nan, math.nan
    left = np.log(others[:, 0] / others[:, 1])
    error = math.sqrt((len(each) - 1) * left.var())
    low, high = interval(middle, error, len(each))
    return math.exp(middle), math.exp(low), math.exp(high)


def interval(middle: float, error: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a mean over so many runs with this standard error."""
    half = float(stats.t.ppf(0.975, count - 1)) * error if count > 1 else math.nan
    return middle - half, middle + half
