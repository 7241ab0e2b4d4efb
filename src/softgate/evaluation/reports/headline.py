"""What a comparison found, in one plain sentence for each arm: for somebody who reads nothing else of the report."""

from __future__ import annotations

import math

from softgate.evaluation.compare import Comparison, Row
from softgate.evaluation.generalization.measures import PRIMARY
from softgate.evaluation.reports.sentences import claims, counted, the
from softgate.evaluation.runs import TRUE_GRADIENT, softens

ORDER = ("better", "worse", "equivalent", "not told apart")
"""Verdicts, what matters most first."""

EFFECT = 0.01
"""The true difference that seeds are counted for here."""


def headline(found: Comparison) -> list[str]:
    """A sentence for each arm and condition: claims first, then arms as good, then open ones, the largest first.

    Args:
        found: The comparison, with its arms under the names that people read.
    """
    rows = [row for row in found.rows if row.measure == PRIMARY]
    if not rows:
        return claims(found)
    rows.sort(key=lambda row: (ORDER.index(row.verdict), math.isnan(row.difference.low), -abs(row.difference.mean)))
    return [_sentence(row, found) for row in rows]


def _sentence(row: Row, found: Comparison) -> str:
    one, level = row.difference, found.options.level
    subject, several = _subject(row, found)
    base, seeds = the(found.baseline), counted(len(row.seeds), "seed")
    where = f"on {found.data['name']}" + (f" at {row.condition}" if row.condition else "")
    equivalent = row.verdict == "equivalent"
    low, high = one.inner if equivalent else (one.low, one.high)
    mean, least, most = points(one.mean, low, high)
    if math.isnan(low):
        why = "of which every one found the same" if len(row.seeds) > 1 else "which says nothing of others"
        return f"{subject} and {base} cannot be compared {where}: {mean} points of top-1 with {seeds}, {why}."
    numbers = f"{mean} points of top-1, between {least} and {most}"
    do = "do" if several else "does"
    margin = f"{100 * (one.margin or 0):g} point{'' if one.margin == EFFECT else 's'}"
    if row.verdict in ("better", "worse"):
        small = f", which is less than the {margin} that would matter" if one.equivalent(level) else ""
        return f"{subject} {do} {row.verdict} than {base} {where}: {numbers}, over {seeds}{small}."
    if equivalent:
        inner = f"{100 * (2 * level - 1):g} %"
        return f"{subject} {do} as well as {base} {where}, to within {margin}: {numbers} ({inner} sure), over {seeds}."
    return f"{subject} and {base} cannot be told apart {where}: {numbers}{_needed(row)}."


def _subject(row: Row, found: Comparison) -> tuple[str, bool]:
    """How a sentence on an arm begins, and whether that is a plural."""
    soft = any(run.arm == row.arm and run.config.get("surrogate") and softens(run) for run in found.runs)
    if soft and len(found.arms) == 2 and found.baseline == TRUE_GRADIENT:
        return f"Soft gates ({row.arm})", True
    named = the(row.arm)
    return (named[0].upper() + named[1:] if named != row.arm else named), False


def points(*values: float) -> list[str]:
    """Shares in percentage points with as few decimals as leave none of them at zero that is not, up to four."""
    digits, shown = 1, [100 * value for value in values]
    while digits < 4 and any(value and not round(value, digits) for value in shown):
        digits += 1
    return [f"{value:+.{digits}f}" for value in shown]


def _needed(row: Row) -> str:
    """What it would take to see a point."""
    ahead = dict(row.outlook.seeds).get(EFFECT) if row.outlook else None
    if ahead is None:
        return ""
    if ahead.value is None:
        return "; no number of seeds would show a difference of 1 point on so few images"
    if ahead.value <= len(row.seeds):
        return f"; these {len(row.seeds)} seeds would most likely have shown a difference of 1 point"
    return f"; about {ahead.value:,.0f} seeds would be needed to see a difference of 1 point"
