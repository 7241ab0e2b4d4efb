"""`report.html` of a comparison, for a reader with no network and perhaps a phone, and the tables in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from softgate.evaluation.compare import EFFECTS, Comparison, Row
from softgate.evaluation.generalization.measures import MEASURES, PRIMARY
from softgate.evaluation.reports import links, methods, pages, sentences
from softgate.evaluation.reports.headline import headline
from softgate.evaluation.runs import Run
from softgate.figures.style import Chart
from softgate.rounding import percent
from softgate.tables import Cell, Mark, Table

Drawn = Mapping[str, Mapping[str, tuple[str, Chart, str]]]
"""Part of the page to the name of a chart's file to its title, the chart and what stands below it."""


def charts(found: Comparison) -> Drawn:
    """Every chart of the page."""
    single = sentences.efficiency(found)
    confused = {arm: found.confusion(arm, found.conditions[-1]) for arm in found.arms}
    drawn = [(arm, made.chart(arm), "; ".join(made.sentences()[:3])) for arm, made in confused.items() if made]
    return {
        "forests": {
            f"difference-{key}": (MEASURES[key].title, chart, "") for key, chart in sentences.forests(found).items()
        },
        "curves": _numbered("curve", [(title, chart, "") for title, chart in sentences.curves(found).items()]),
        "efficiency": {"data-efficiency": ("top-1 over the share of data", single, "")} if single else {},
        "scatters": _numbered(
            "scatter", [(title, chart, said) for title, (chart, said) in sentences.scatters(found).items()]
        ),
        "confusions": _numbered("confusion", drawn),
    }


def _numbered(kind: str, made: Sequence[tuple[str, Chart, str]]) -> dict[str, tuple[str, Chart, str]]:
    """The charts under names that can be those of files."""
    return {
        f"{kind}-{place}-{re.sub('[^A-Za-z0-9_.]+', '-', one[0])[:60].strip('-')}": one
        for place, one in enumerate(made)
    }


def page(found: Comparison, command: str, drawn: Drawn | None = None, directory: Path | None = None) -> str:
    """The report as HTML: one file, which loads nothing; what it links to may be missing.

    Args:
        found: The comparison.
        command: What made the report.
        drawn: Its `charts`; None makes them.
        directory: Where the page will lie, for links to what lies beside it; None makes none of these.
    """
    found = found.for_people()
    pictures = {
        part: [pages.chart(chart, title, said) for title, chart, said in every.values()]
        for part, every in (charts(found) if drawn is None else drawn).items()
    }
    per_class = classes(found)
    data = found.data
    about = (
        f"{data['name']}, {sentences.measured(found)}, {len(data['classes'])} classes; "
        f"{sentences.counted(len(found.runs), 'run')}, {sentences.counted(len(found.arms), 'arm')}; "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )
    return pages.render(
        "comparison.html",
        data=data,
        arms=found.arms,
        baseline=sentences.the(found.baseline),
        headline=headline(found),
        methods=methods.methods(found),
        seeds=per_seed(found, directory),
        about=about,
        claims=sentences.claims(found),
        left=[*found.left, *found.notes],
        tuned=found.tuned,
        legend=sentences.legend(found),
        summary=summary(found),
        how=[methods.how(found), f"{methods.sizes(found)} Checkpoint: {found.options.checkpoint}.".lstrip()],
        forests=pictures["forests"],
        differences=differences(found),
        outlook=outlook(found),
        ahead=methods.ahead(found),
        curves=pictures["curves"],
        efficiency=pictures["efficiency"],
        scatters=pictures["scatters"],
        confusions=pictures["confusions"],
        classes=replace(per_class, rows=per_class.rows[:MOST_CLASSES]),
        class_count=len(per_class.rows),
        grids=[pages.photograph(path, arm, links.beside(path, directory) or "") for arm, path in found.grids.items()],
        recipe=methods.recipe(found),
        runs=runs(found, directory),
        hours=methods.hours(found),
        versions=methods.versions(found),
        commands=[*dict.fromkeys(run.sweep_command for run in found.runs if run.sweep_command), command],
        each=[run.command for run in found.runs],
    )


MOST_CLASSES = 30
"""Classes in the page's table; `classes.csv` has all of them."""


def classes(found: Comparison) -> Table:
    """Top-1 of every class under every arm, over all seeds; the classes that the baseline recognises least first."""
    condition = found.conditions[-1]
    made = {arm: found.confusion(arm, condition) for arm in found.arms}
    known = {arm: one for arm, one in made.items() if one is not None}
    if not known:
        return Table(["class"], [])
    first = next(iter(known.values()))
    shares_of_first = [2.0 if share is None else share for share in first.accuracies]
    order = sorted(range(len(first.names)), key=shares_of_first.__getitem__)
    rows: list[list[str | Cell]] = []
    for place in order:
        shares = [one.accuracies[place] for one in known.values()]
        rows.append([first.names[place], *(Cell(percent(share), share) for share in shares)])
    return Table(["class", *known], rows, "classes")


MARKS: Mapping[str, Mark] = {"better": "better", "worse": "worse"}
"""Of the verdicts; the others are no gain and no loss."""


def summary(found: Comparison) -> Table:
    """Measures down, arms across."""
    places = [(arm, c) for c in found.conditions for arm in found.arms if found.of(arm, c)]
    heads = ["measure", *(" at ".join(filter(None, place)) for place in places)]
    rows = []
    for key in found.keys:
        cells = []
        for arm, condition in places:
            values = np.array([each.values[key] for each in found.of(arm, condition).values() if key in each.values])
            spread = f" ± {sentences.number(key, float(values.std(ddof=1)))}" if len(values) > 1 else ""
            cells.append(f"{sentences.number(key, float(values.mean()))}{spread}" if len(values) else "–")
        rows.append([f"{MEASURES[key].title} {'↑' if MEASURES[key].better else '↓'}", *cells])
    counts = [sentences.counted(len(found.of(*place)), "seed") for place in places]
    return Table(heads, [*rows, ["seeds", *counts]], "summary")


def differences(found: Comparison) -> Table:
    """One line for each arm and measure."""
    heads = ["arm", "measure", "difference", f"{found.options.level:.0%} interval", "p", "Holm p", "sign p"]
    heads += ["seeds", "detectable", "verdict"]
    rows: list[list[str | Cell]] = []
    for row in found.rows:
        one, key = row.difference, row.measure
        p = ["–" if math.isnan(value) else f"{value:.2g}" for value in (one.p, one.adjusted, one.sign_p)]
        least = sentences.number(key, row.outlook.detectable.value if row.outlook else None, signed=True).lstrip("+")
        mean = sentences.number(key, one.mean, signed=True)
        verdict = Cell(row.verdict, mark=MARKS.get(row.verdict))
        ends = _ends(key, one.low, one.high)
        rows.append([_label(row), MEASURES[key].title, mean, ends, *p, str(len(row.seeds)), least, verdict])
    return Table(heads, rows, "differences")


def outlook(found: Comparison) -> Table:
    """Of top-1, one line for each arm: whether it is equivalent, and what other seeds would find."""
    level = found.options.level
    inner, margin = 2 * level - 1, found.options.equivalence
    heads = ["arm", "sd of a seed's difference", "detectable", *(f"seeds for {100 * one:g} pp" for one in EFFECTS)]
    heads += [] if margin is None else [f"{inner:.0%} interval", f"Holm p of ±{margin:g} pp", "equivalent"]
    rows: list[list[str | Cell]] = []
    for row in found.rows:
        if row.measure != PRIMARY or row.outlook is None:
            continue
        one = row.difference
        figures = [sentences.between(PRIMARY, each) for each in (row.outlook.deviation, row.outlook.detectable)]
        cells = [_label(row), *figures, *(sentences.needed(each) for _, each in row.outlook.seeds)]
        if margin is not None:
            p = "–" if math.isnan(one.outside_adjusted) else f"{one.outside_adjusted:.2g}"
            cells += [_ends(PRIMARY, *one.inner), p, "yes" if one.equivalent(level) else "not shown"]
        rows.append([*cells])
    return Table(heads, rows, "outlook")


def _label(row: Row) -> str:
    return " at ".join(filter(None, (row.arm, row.condition)))


def _ends(key: str, low: float, high: float) -> str:
    return f"{sentences.number(key, low, signed=True)} … {sentences.number(key, high, signed=True)}"


def per_seed(found: Comparison, directory: Path | None = None) -> Table:
    """Every measure of every run, the seeds of an arm below each other, with links to the runs from `directory`."""
    keys = found.keys
    tracked = {run.label: address for run in found.runs if (address := links.tracked(run))}
    order = {arm: place for place, arm in enumerate(found.arms)}
    pairs = zip(found.runs, found.measured, strict=True)
    rows: list[list[str | Cell]] = []
    for run, each in sorted(pairs, key=lambda pair: (pair[0].condition, order[pair[0].arm], pair[0].seed)):
        values = [
            Cell(sentences.number(key, value), value) if (value := each.values.get(key)) is not None else Cell("–")
            for key in keys
        ]
        made: list[str | Cell] = [_place(run), str(run.seed), *values]
        made.append(Cell(run.label, link=links.beside(run.directory, directory)))
        address = tracked.get(run.label)
        rows.append([*made, *([Cell("W&B" if address else "–", link=address)] if tracked else [])])
    heads = ["arm", "seed", *(MEASURES[key].title for key in keys), "run", *(["tracked"] if tracked else [])]
    return Table(heads, rows, "per seed")


def _place(run: Run) -> str:
    return " at ".join(filter(None, (run.arm, run.condition)))


def runs(found: Comparison, directory: Path | None = None) -> Table:
    """One line for each run, with links to them from a page in `directory`."""
    heads = ["run", "arm", "seed", "top-1", "best epoch", "seconds", "device-hours", "cost", "hardware", "started"]
    rows = []
    for run, each in zip(found.runs, found.measured, strict=True):
        made, seconds = run.summary.get("environment") or {}, float(run.summary.get("seconds") or 0)
        hours, price = seconds * made.get("devices", 1) / 3600, found.options.price
        hardware = f"{made.get('devices', 1)} × {made['hardware']}" if made else "not recorded"
        linked = Cell(run.label, link=links.beside(run.directory, directory))
        cells: list[str | Cell] = [linked, _place(run), str(run.seed), sentences.number(PRIMARY, each.values[PRIMARY])]
        cells += [_best(run), f"{seconds:.0f}", f"{hours:.3f}"]
        cells += ["–" if price is None else f"{hours * price:.2f}", hardware, str(run.summary.get("started", "–"))]
        rows.append(cells)
    return Table(heads, rows, "runs")


def _best(run: Run) -> str:
    """A run's best epoch, counted from 1 as on the terminal and in the charts."""
    epoch = run.summary.get("best/epoch")
    return str(epoch + 1) if isinstance(epoch, int) else "–"
