"""The charts and the sentences of a comparison's report: from numbers to what a reader sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from softgate.evaluation.compare import Comparison, Row
from softgate.evaluation.generalization.measures import MEASURES, PRIMARY
from softgate.evaluation.runs import Run
from softgate.figures import comparison
from softgate.figures.comparison import Interval
from softgate.figures.panels import Line


def number(key: str, value: float | None, signed: bool = False) -> str:
    """A value of a measure as text; shares in percent, and differences of shares in percentage points."""
    if value is None or not math.isfinite(value):
        return "–"
    measure = MEASURES[key]
    sign = "+" if signed else ""
    unit = "pp" if signed else "%"
    return f"{100 * value:{sign}.2f} {unit}" if measure.percent else f"{value:{sign}.4g}"


def span(key: str, row: Row, level: float) -> str:
    """A difference with its interval as text."""
    one = row.difference
    if not math.isfinite(one.low):
        return f"{number(key, one.mean, signed=True)} (no interval)"
    ends = f"{number(key, one.low, signed=True)} to {number(key, one.high, signed=True)}"
    return f"{number(key, one.mean, signed=True)} ({level:.0%}: {ends})"


def claims(found: Comparison) -> list[str]:
    """A sentence on top-1 for each arm: told apart or not, and how many seeds it would take."""
    lines = []
    level = found.options.level
    for row in found.rows:
        if row.measure != PRIMARY:
            continue
        where = f" at {row.condition}" if row.condition else ""
        word = "from" if row.verdict == "not told apart" else "than"
        numbers = (
            f"{span(PRIMARY, row, level)}, {counted(len(row.seeds), 'seed')}, {probability(row.difference.adjusted)}"
        )
        lines.append(f"{row.arm} is {row.verdict} {word} {found.baseline}{where}: {numbers}.{need(row)}")
    if lines:
        return lines
    others = found.arms[1:]
    if not others:
        return [f"There is no arm but {found.baseline}: nothing is compared."]
    return [f"{', '.join(others)}: no seed is shared with {found.baseline}: nothing is compared."]


def need(row: Row) -> str:
    """What it would take to tell an arm apart that was not."""
    one = row.difference
    if row.verdict != "not told apart":
        return ""
    if one.variance is None:
        return " One seed makes no claim."
    if not math.isfinite(one.detectable):
        return ""
    found = number(row.measure, one.detectable, signed=True).lstrip("+")
    least = f" {counted(len(row.seeds), 'seed')} find a difference of {found} four times in five"
    if one.needed is None:
        return f"{least}; on these images no number of seeds would find one as small as this."
    return f"{least}; one of this size would need {one.needed}."


def counted(count: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def probability(p: float) -> str:
    """Holm's p as text."""
    return "no p" if math.isnan(p) else "Holm p < 0.001" if p < 0.001 else f"Holm p = {p:.2g}"


def forests(found: Comparison) -> dict[str, bytes]:
    """Measure to the chart of its differences."""
    made = {}
    for key in found.keys:
        rows = [row for row in found.rows if row.measure == key]
        factor = 100 if MEASURES[key].percent else 1
        drawn = []
        for row in rows:
            one = row.difference
            mean, low, high = (factor * value for value in (one.mean, one.low, one.high))
            label = " at ".join(filter(None, (row.arm, row.condition)))
            each = [factor * value for value in one.deltas]
            drawn.append(Interval(label, mean, low, high, each, row.verdict != "not told apart"))
        if drawn:
            better = "right" if MEASURES[key].better else "left"
            unit = "percentage points" if MEASURES[key].percent else "difference"
            title = f"{MEASURES[key].title}, minus {found.baseline}"
            made[key] = comparison.forest(drawn, title, f"{unit}; {better} is better")
    return made


def curves(found: Comparison) -> dict[str, bytes]:
    """Title to the chart of accuracy, loss and alignment over epochs; of several conditions, in the last."""
    wanted = {"val/acc": "test top-1", "val/loss": "test loss", "train/loss": "training loss"}
    made = {}
    condition = found.conditions[-1]
    places = {arm: place for place, arm in enumerate(found.arms)}
    for key, title in wanted.items():
        known = {arm: [run.points.get(key, []) for run in of(found, arm, condition)] for arm in found.arms}
        log = comparison.steep([value for arm in known.values() for points in arm for _, value in points])
        lines = {arm: band(points, log) for arm, points in known.items()}
        if any(line.points for line in lines.values()):
            made[title] = comparison.curves(lines, places, title, log=log)
    for metric in found.options.curves:
        lines, colours = {}, {}
        for arm in found.arms:
            for read in ("soft", "hard"):
                points = [run.points.get(f"align/{read}/{metric}", []) for run in of(found, arm, condition)]
                name = f"{arm}, {read}"
                lines[name], colours[name] = band(points), places[arm]
        if any(line.points for line in lines.values()):
            title = f"{metric.replace('_', ' ')}; dashed: read out hard"
            made[title] = comparison.curves(lines, colours, title)
    return made


def of(found: Comparison, arm: str, condition: str) -> list[Run]:
    """The runs of an arm in a condition."""
    return [run for run in found.runs if (run.arm, run.condition) == (arm, condition)]


def band(histories: Sequence[Sequence[tuple[float, float]]], log: bool = False) -> Line:
    """The mean over seeds with a 95 % t interval, at the epochs that all seeds have; no band with one seed.

    Args:
        histories: For each seed, epochs and values.
        log: Take both of the logarithms: a geometric mean, and an interval that a log scale can show.
    """
    known = [dict(points) for points in histories if points]
    if not known:
        return Line(())
    epochs = sorted(set.intersection(*map(set, known)))
    values = np.array([[each[epoch] for epoch in epochs] for each in known])
    values = np.log(values) if log else values
    sides = [values.mean(0)]
    if len(known) > 1:
        reach = stats.t.ppf(0.975, len(known) - 1) * values.std(0, ddof=1) / math.sqrt(len(known))
        sides += [sides[0] - reach, sides[0] + reach]
    return Line(*(list(zip(epochs, np.exp(side) if log else side, strict=True)) for side in sides))


def scatters(found: Comparison) -> dict[str, tuple[bytes, str]]:
    """Title to the chart of top-1 against an alignment metric, one dot a run, and a sentence on their correlation."""
    made = {}
    for metric in found.options.curves:
        key = f"align/soft/{metric}"
        groups: dict[str, list[tuple[float, float]]] = {arm: [] for arm in found.arms}
        for run, each in zip(found.runs, found.measured, strict=True):
            points = run.points.get(key)
            if points and math.isfinite(points[-1][1]):
                groups[run.arm].append((points[-1][1], 100 * each.values[PRIMARY]))
        if sum(map(len, groups.values())) < 3:
            continue
        title = f"top-1 against {metric.replace('_', ' ')}"
        chart = comparison.scatter(groups, title, f"{metric.replace('_', ' ')} of the pullback, last epoch", "top-1, %")
        made[title] = chart, correlation(groups)
    return made


def correlation(groups: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Spearman's correlation over all runs, and within arms, which arms that differ in both cannot feign."""
    every = np.array([point for points in groups.values() for point in points])
    centred = [np.array(points) - np.mean(points, 0) for points in groups.values() if len(points) > 1]
    parts = [every, np.concatenate(centred) if centred else every[:0]]
    found = [f"{stats.spearmanr(*p.T).statistic:.2f}" if len(p) > 1 and np.ptp(p, 0).all() else "–" for p in parts]
    return f"Spearman over all {len(every)} runs {found[0]}, within arms {found[1]}."


def legend(found: Comparison) -> list[tuple[str, str]]:
    """Arm and colour."""
    return [(arm, comparison.colour(place)) for place, arm in enumerate(found.arms)]


def efficiency(found: Comparison) -> bytes | None:
    """Top-1 over the share of the training data, where runs have several."""
    key = "data.fraction"
    if key not in found.options.within:
        return None
    lines = {}
    for arm in found.arms:
        by_seed: dict[int, list[tuple[float, float]]] = {}
        for run, each in zip(found.runs, found.measured, strict=True):
            if run.arm == arm:
                share = float(run.config["data"].get("fraction", 1.0))
                by_seed.setdefault(run.seed, []).append((100 * share, 100 * each.values[PRIMARY]))
        lines[arm] = band(list(by_seed.values()))
    if not any(len(line.points) > 1 for line in lines.values()):
        return None
    places = {arm: place for place, arm in enumerate(found.arms)}
    return comparison.curves(lines, places, "top-1, %, over the share of training data", "% of the training images")
