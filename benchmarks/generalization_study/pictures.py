"""The study's pictures: differences with intervals over all cells, and what each rate gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from generalization_study.ledger import Ledger
from generalization_study.plan import Plan
from softgate.figures import style

if TYPE_CHECKING:
    from generalization_study.report import CellReport


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
