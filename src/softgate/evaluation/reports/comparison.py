"""`report.html` of a comparison, for a reader with no network and perhaps a phone, and the tables in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from softgate.evaluation.compare import Comparison
from softgate.evaluation.generalization.measures import MEASURES, PRIMARY
from softgate.evaluation.reports import pages, sentences
from softgate.evaluation.runs import flatten
from softgate.tables import Cell, Mark, Table


def page(found: Comparison, command: str) -> str:
    """The report as HTML: no script, no address of another file.

    Args:
        found: The comparison.
        command: What made the report.
    """
    data = found.data
    about = (
        f"{data['name']}, {data['images']:,} test images, {len(data['classes'])} classes; "
        f"{sentences.counted(len(found.runs), 'run')}, {sentences.counted(len(found.arms), 'arm')}; "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )
    efficiency = sentences.efficiency(found)
    return pages.render(
        "comparison.html",
        data=data,
        arms=found.arms,
        baseline=found.baseline,
        about=about,
        claims=sentences.claims(found),
        left=[*found.left, *found.notes],
        tuned=found.tuned,
        legend=sentences.legend(found),
        summary=summary(found),
        how=[_how(found), _sizes(found)],
        forests=[pages.chart(svg, MEASURES[key].title) for key, svg in sentences.forests(found).items()],
        differences=differences(found),
        curves=[pages.chart(svg, title) for title, svg in sentences.curves(found).items()],
        efficiency=[pages.chart(efficiency, "top-1 over the share of data")] if efficiency else [],
        scatters=[pages.chart(svg, title, said) for title, (svg, said) in sentences.scatters(found).items()],
        grids=[pages.photograph(path, arm) for arm, path in found.grids.items()],
        recipe=_recipe(found),
        runs=runs(found),
        hours=_hours(found),
        versions=_versions(found),
        commands=[*dict.fromkeys(run.sweep_command for run in found.runs if run.sweep_command), command],
        each=[run.command for run in found.runs],
    )


MARKS: Mapping[str, Mark] = {"better": "better", "worse": "worse"}
"""Of the verdicts."""


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
    heads += ["seeds", "detectable", "seeds needed", "verdict"]
    rows: list[list[str | Cell]] = []
    for row in found.rows:
        one, key = row.difference, row.measure
        ends = f"{sentences.number(key, one.low, signed=True)} … {sentences.number(key, one.high, signed=True)}"
        p = ["–" if math.isnan(value) else f"{value:.2g}" for value in (one.p, one.adjusted, one.sign_p)]
        least = sentences.number(key, one.detectable, signed=True).lstrip("+")
        needed = "–" if one.variance is None or not math.isfinite(one.detectable) else str(one.needed or "no number")
        label = " at ".join(filter(None, (row.arm, row.condition)))
        mean = sentences.number(key, one.mean, signed=True)
        verdict = Cell(row.verdict, mark=MARKS.get(row.verdict))
        rows.append([label, MEASURES[key].title, mean, ends, *p, str(len(row.seeds)), least, needed, verdict])
    return Table(heads, rows, "differences")


def runs(found: Comparison) -> Table:
    """One line for each run."""
    heads = ["run", "arm", "seed", "top-1", "best epoch", "seconds", "device-hours", "cost", "hardware", "started"]
    rows = []
    for run, each in zip(found.runs, found.measured, strict=True):
        made, seconds = run.summary.get("environment") or {}, float(run.summary.get("seconds") or 0)
        hours, price = seconds * made.get("devices", 1) / 3600, found.options.price
        hardware = f"{made.get('devices', 1)} × {made['hardware']}" if made else "not recorded"
        arm = " at ".join(filter(None, (run.arm, run.condition)))
        cells = [run.label, arm, str(run.seed), sentences.number(PRIMARY, each.values[PRIMARY])]
        cells += [str(run.summary.get("best/epoch", "–")), f"{seconds:.0f}", f"{hours:.3f}"]
        cells += ["–" if price is None else f"{hours * price:.2f}", hardware, str(run.summary.get("started", "–"))]
        rows.append(cells)
    return Table(heads, rows, "runs")


def _hours(found: Comparison) -> float:
    """Device-hours of training, over all runs."""
    seconds = [float(run.summary.get("seconds") or 0) for run in found.runs]
    devices: list[int] = [(run.summary.get("environment") or {}).get("devices", 1) for run in found.runs]
    return sum(s * d for s, d in zip(seconds, devices, strict=True)) / 3600


def _how(found: Comparison) -> str:
    level = found.options.level
    return (
        f"Each arm minus {found.baseline}, paired by seed and by image. An arm is called better or worse only where "
        f"its {level:.0%} interval excludes 0 and p, after Holm's correction over the arms of that measure, is at most "
        f"{1 - level:.2g}. Intervals are by a bootstrap over seeds × images, widened to Student's t for the few seeds; "
        f"measures without a value for each image (ECE, gap, sharpness) vary over seeds only. Claims rest on "
        f"{MEASURES[PRIMARY].title}; the other measures say where a difference lies. Marks below a line are seeds; red "
        f"is told apart. Detectable: the least true difference that is found four times in five; seeds needed: to "
        f"find one as large as the one seen. pp: percentage points."
    )


def _sizes(found: Comparison) -> str:
    options = found.options
    corruptions, attack = options.corruptions, options.attack
    severities = ", ".join(map(str, corruptions.severities))
    families = ", ".join(corruptions.families)
    radii = [f"Linf {attack.linf}"] if attack.linf is not None else []
    radii += [f"L2 {attack.l2} at 32 px"] if attack.l2 is not None else []
    few = options.sharpness.images
    sizes = ""
    if families and severities:
        sizes += f"Corrupted: {families}, severities {severities}, {corruptions.images or 'all'} images. "
    if radii:
        sizes += (
            f"Attacks: {attack.steps} steps, {sentences.counted(attack.restarts, 'restart')}, "
            f"{attack.images or 'all'} images, {', '.join(radii)}. "
        )
    if few != 0:
        sizes += f"Sharpness: {few or 'all'} training images. "
    return f"{sizes}Checkpoint: {options.checkpoint}."


def _recipe(found: Comparison) -> Table:
    flat = [flatten(run.config) for run in found.runs]
    same = {k: v for k, v in flat[0].items() if all(each.get(k) == v for each in flat)}
    rows = [[key, str(value)] for key, value in same.items() if not key.startswith(("callbacks", "readout", "hydra"))]
    return Table(["key", "value"], rows)


def _versions(found: Comparison) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for label, made in [
        *((run.label, run.summary.get("environment")) for run in found.runs),
        ("this report", found.environment),
    ]:
        kinds.setdefault(_made_with(made), []).append(label)
    return [f"{kind} ({_several(names)})" for kind, names in kinds.items()]


def _made_with(made: Mapping[str, Any] | None) -> str:
    if not made:
        return "not recorded"
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items() if version)
    commit = f", commit {made['commit']}" if made.get("commit") else ""
    where = f"{made['devices']} × {made['hardware']}, {made['cores']} cores, {made['threads']} threads"
    return f"Python {made['python']}, {packages}{commit}; {made['platform']}; {where}"


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
