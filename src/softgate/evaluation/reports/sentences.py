"""The charts and the sentences of a comparison's report: from numbers to what a reader sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from softgate.evaluation.compare import Comparison, Row
from softgate.evaluation.generalization.measures import MEASURES, PRIMARY
from softgate.evaluation.generalization.planning import Between
from softgate.evaluation.generalization.statistics import Difference
from softgate.evaluation.runs import TRUE_GRADIENT, Run
from softgate.figures import comparison
from softgate.figures.comparison import Interval
from softgate.figures.panels import Line
from softgate.figures.style import Chart
from softgate.metrics.control_table import POSSIBLE, titled
from softgate.rounding import rounded


def number(key: str, value: float | None, signed: bool = False) -> str:
    """A value of a measure as text; shares in percent, and differences of shares in percentage points."""
    if value is None or not math.isfinite(value):
        return "–"
    measure = MEASURES[key]
    sign = "+" if signed else ""
    unit = "pp" if signed else "%"
    return f"{100 * value:{sign}.2f} {unit}" if measure.percent else rounded(value, signed)


def span(key: str, row: Row, level: float) -> str:
    """A difference with its interval as text."""
    one = row.difference
    if not math.isfinite(one.low):
        return f"{number(key, one.mean, signed=True)} (no interval)"
    ends = f"{number(key, one.low, signed=True)} to {number(key, one.high, signed=True)}"
    return f"{number(key, one.mean, signed=True)} ({level:.0%}: {ends})"


def between(key: str, one: Between) -> str:
    """A figure on a measure with the ends of its interval, as text."""
    value, low, high = (number(key, each, signed=True).lstrip("+") for each in (one.value, one.low, one.high))
    return f"{value} ({low} to {high})"


def needed(one: Between) -> str:
    """A number of seeds with the ends of its interval, as text; None is more than anybody has, or never."""
    value = "no number" if one.value is None else f"{one.value:,.0f}"
    if one.low is None:
        return value
    return f"{value} ({one.low:,.0f} {'or more' if one.high is None else f'to {one.high:,.0f}'})"


def measured(found: Comparison) -> str:
    """How many images are measured, and what they may be called."""
    return f"{found.data['images']:,} {found.data['called']}"


def the(arm: str) -> str:
    """An arm within a sentence: the true gradient has an article, names have none."""
    return f"the {arm}" if arm.startswith(TRUE_GRADIENT) else arm


def claims(found: Comparison) -> list[str]:
    """Sentences on top-1 for each arm: told apart, equivalent or neither, and what it would take."""
    lines = [claim(row, found) for row in found.rows if row.measure == PRIMARY]
    if lines:
        return lines
    others = found.arms[1:]
    if not others:
        return [f"There is no arm but {the(found.baseline)}: nothing is compared."]
    return [f"{', '.join(others)}: no seed is shared with {the(found.baseline)}: nothing is compared."]


def claim(row: Row, found: Comparison) -> str:
    """What is said of one arm."""
    one, level = row.difference, found.options.level
    where = f" at {row.condition}" if row.condition else ""
    seeds = counted(len(row.seeds), "seed")
    base = the(found.baseline)
    words = {"not told apart": f"not told apart from {base}", "equivalent": f"equivalent to {base}"}
    said = words.get(row.verdict, f"{row.verdict} than {base}")
    within = f" within {reach(one)}" if row.verdict == "equivalent" else ""
    numbers = f"{span(PRIMARY, row, level)}, {seeds}, {probability(one.adjusted)}"
    parts = [f"{the(row.arm)} is {said}{where}{within}: {numbers}.", equivalence(row, level), need(row)]
    return " ".join(filter(None, parts))


def reach(one: Difference) -> str:
    """The margin of equivalence as text."""
    return f"±{100 * (one.margin or 0):g} pp"


def equivalence(row: Row, level: float) -> str:
    """Whether the arm is shown to be as good as the baseline, in a sentence; nothing where it is not asked."""
    one = row.difference
    if one.margin is None or not math.isfinite(one.inner[0]):
        return ""
    low, high = (number(PRIMARY, end, signed=True) for end in one.inner)
    inner, p = f"{2 * level - 1:.0%} interval, {low} to {high},", probability(one.outside_adjusted)
    if one.equivalent(level):
        start = "" if row.verdict == "equivalent" else "Yet a difference that matters is ruled out: "
        return f"{start}{'the' if start else 'The'} {inner} lies within {reach(one)} ({p} of a difference as large)."
    if row.verdict != "not told apart":
        return ""
    if -one.margin < one.inner[0] and one.inner[1] < one.margin:
        return (
            f"Nor is it shown to be equivalent: the {inner} lies within {reach(one)}, but {p} of a difference as large."
        )
    return f"Nor is it shown to be equivalent: the {inner} is not within {reach(one)}."


def need(row: Row) -> str:
    """What these seeds would find, and what it would take to find more; nothing for an arm that is told apart."""
    if row.verdict in ("better", "worse"):
        return ""
    if len(row.seeds) < 2:
        return "One seed makes no claim."
    ahead = row.outlook
    if ahead is None:
        return ""
    least = f"{counted(len(row.seeds), 'seed')} find a true difference of {between(PRIMARY, ahead.detectable)}"
    sizes = listed([f"{100 * effect:g}" for effect, _ in ahead.seeds])
    seeds = listed([needed(each) for _, each in ahead.seeds])
    return f"{least} four times in five; for {sizes} pp it takes {seeds} seeds."


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def counted(count: int, noun: str, ending: str = "s") -> str:
    """1 seed, 2 seeds."""
    return f"{count} {noun}{'' if count == 1 else ending}"


def probability(p: float) -> str:
    """Holm's p as text."""
    return "no p" if math.isnan(p) else "Holm p < 0.001" if p < 0.001 else f"Holm p = {p:.2g}"


def forests(found: Comparison) -> dict[str, Chart]:
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
            drawn.append(Interval(label, mean, low, high, each, row.verdict in ("better", "worse")))
        if drawn:
            better = "right" if MEASURES[key].better else "left"
            unit = "percentage points" if MEASURES[key].percent else "difference"
            title = f"{MEASURES[key].title}, minus {found.baseline}"
            made[key] = comparison.forest(drawn, title, f"{unit}; {better} is better")
    return made


def curves(found: Comparison) -> dict[str, Chart]:
    """Title to the chart of accuracy, loss and alignment over epochs; of several conditions, in the last."""
    wanted = {"val/acc": "validation top-1", "val/loss": "validation loss", "train/loss": "training loss"}
    made = {}
    condition = found.conditions[-1]
    places = {arm: place for place, arm in enumerate(found.arms)}
    for key, title in wanted.items():
        known = {arm: [_counted(run, key) for run in of(found, arm, condition)] for arm in found.arms}
        log = comparison.steep([value for arm in known.values() for points in arm for _, value in points])
        lines = {arm: band(points, log) for arm, points in known.items()}
        if any(line.points for line in lines.values()):
            possible = (0, 1 if key == "val/acc" else None)
            made[title] = comparison.curves(lines, places, title, log=log, possible=possible)
    for metric in found.options.curves:
        lines, colours = {}, {}
        for arm in found.arms:
            for read in ("soft", "hard"):
                points = [_counted(run, f"align/{read}/{metric}") for run in of(found, arm, condition)]
                name = f"{arm}, {read}"
                lines[name], colours[name] = band(points), places[arm]
        if any(line.points for line in lines.values()):
            title = f"{titled(metric).replace('_', ' ')}; dashed: read out hard"
            made[title] = comparison.curves(lines, colours, title, possible=POSSIBLE[metric])
    return made


def _counted(run: Run, key: str) -> list[tuple[float, float]]:
    """What a run logged, its epochs counted from 1 as on the terminal."""
    return [(epoch + 1, value) for epoch, value in run.points.get(key, [])]


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


def scatters(found: Comparison) -> dict[str, tuple[Chart, str]]:
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


def efficiency(found: Comparison) -> Chart | None:
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
