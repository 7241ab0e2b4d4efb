"""What `results.json` and the CSV files hold of a comparison: plain data."""

from __future__ import annotations

from typing import Any

from softgate.evaluation.compare import Comparison, Row
from softgate.evaluation.generalization.measures import MEASURES, PRIMARY
from softgate.evaluation.generalization.planning import Between

SCHEMA = 2
"""Version of what stands under `comparison` in `results.json`."""


def plain(found: Comparison) -> dict[str, Any]:
    """For `results.json`."""
    runs = []
    for run, each in zip(found.runs, found.measured, strict=True):
        about = {key: run.summary.get(key) for key in ("started", "seconds", "environment", "best/epoch")}
        names = {"label": run.label, "directory": str(run.directory), "command": run.command}
        runs.append(
            {**names, "arm": run.arm, "condition": run.condition, "seed": run.seed, **about, "measures": each.values}
        )
    return {
        "schema": SCHEMA,
        "baseline": found.baseline,
        "arms": found.arms,
        "conditions": found.conditions,
        "data": found.data,
        "better": {key: "higher" if MEASURES[key].better else "lower" for key in found.keys},
        "primary": PRIMARY,
        "runs": runs,
        "differences": [difference(row, found.options.level) for row in found.rows],
        "classes": _classes(found),
        "left_out": found.left,
        "notes": found.notes,
        "tuned": found.tuned,
        "environment": found.environment,
        "options": found.options.plain,
    }


def _classes(found: Comparison) -> dict[str, dict[str, float | None]]:
    """Arm to class to top-1 over all seeds, in the last condition."""
    made = {arm: found.confusion(arm, found.conditions[-1]) for arm in found.arms}
    return {arm: dict(zip(one.names, one.accuracies, strict=True)) for arm, one in made.items() if one is not None}


def difference(row: Row, level: float) -> dict[str, Any]:
    """One line: what was found, what is claimed, and what other seeds would find."""
    one = row.difference
    about = {"arm": row.arm, "condition": row.condition, "measure": row.measure, "seeds": row.seeds}
    numbers = {key: getattr(one, key) for key in ("mean", "low", "high", "p", "adjusted", "sign_p")}
    margin = {"margin": one.margin, "inner_low": one.inner[0], "inner_high": one.inner[1]}
    margin |= {"outside_p": one.outside_p, "outside_adjusted": one.outside_adjusted}
    margin |= {"equivalent": None if one.margin is None else one.equivalent(level)}
    ahead = {} if row.outlook is None else _ends("deviation", row.outlook.deviation)
    ahead |= {} if row.outlook is None else _ends("detectable", row.outlook.detectable)
    for effect, needed in row.outlook.seeds if row.outlook else ():
        ahead |= _ends(f"seeds_for_{100 * effect:g}", needed)
    return {**about, **numbers, **margin, **ahead, "deltas": one.deltas, "verdict": row.verdict}


def _ends(name: str, one: Between) -> dict[str, float | None]:
    return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
