"""What is claimed of one arm against another: the only place where the study's statistics are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softgate.evaluation.generalization import planning, statistics
from softgate.evaluation.generalization.statistics import LEVEL, Array, Difference


@dataclass(frozen=True)
class Contrast:
    """One arm minus another on one measure, paired by seed, corrected within its family.

    Attributes:
        difference: Mean, intervals, p, and p after Holm's correction.
        detectable: The least true difference that is found four times in five at the family's strictest level; NaN
            where seeds say nothing of other seeds.
    """

    difference: Difference
    detectable: float

    @property
    def apart(self) -> bool:
        """Whether the arms are told apart: the interval excludes zero, and Holm's p is small enough."""
        return self.difference.verdict(True) in ("better", "worse")

    @property
    def verdict(self) -> str:
        """Of a measure of which more is better: better, worse, as good or undecided."""
        word = self.difference.verdict(True)
        if self.apart:
            return f"{word}, by less than is of interest" if self.difference.equivalent() else word
        return {"equivalent": "as good", "not told apart": "undecided"}[word]


def family(pairs: Sequence[tuple[Array, Array]], smallest: float | None = None) -> list[Contrast]:
    """Contrasts of several arms, corrected for each other by Holm's method.

    Args:
        pairs: Of each arm its scores and those of what it is compared with, [seeds, images], or [seeds] of a measure
            that has one number a run; the same seeds in the same order.
        smallest: The smallest difference of interest; None where none is declared, and no null is claimed.
    """
    found = statistics.together([statistics.paired(arm, base, LEVEL, smallest) for arm, base in pairs])
    return [Contrast(one, _detectable(one, (1 - LEVEL) / len(pairs))) for one in found]


def _detectable(one: Difference, alpha: float) -> float:
    outlook = None if one.variance is None else planning.outlook(one.variance, alpha)
    return float("nan") if outlook is None or outlook.detectable.value is None else outlook.detectable.value
