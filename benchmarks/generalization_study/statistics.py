"""What is claimed of one arm against another: the only place where the study's statistics are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from softgate.evaluation.generalization import statistics
from softgate.evaluation.generalization.statistics import Array

LEVEL = 0.95
"""Of the intervals; one minus it is the share of false claims in a family."""

POWER = 0.8
"""With which probability a detectable difference is found."""


@dataclass(frozen=True)
class Contrast:
    """One arm minus another on one measure, paired by seed.

    Attributes:
        mean: Of the differences.
        interval: 95 %.
        equivalence: 90 %, of two one-sided tests at 5 %.
        p: Two-sided, of no difference.
        deltas: For each seed.
        detectable: The least true difference that is found four times in five at the family's strictest level.
        adjusted: p after Holm's correction within the family.
    """

    mean: float
    interval: tuple[float, float]
    equivalence: tuple[float, float]
    p: float
    deltas: tuple[float, ...]
    detectable: float = float("nan")
    adjusted: float = float("nan")

    @property
    def apart(self) -> bool:
        """Whether the arms are told apart: the interval excludes zero, and Holm's p is small enough."""
        return (self.interval[0] > 0 or self.interval[1] < 0) and self.adjusted <= 1 - LEVEL

    def verdict(self, smallest: float, higher_is_better: bool = True) -> str:
        """better, worse, as good or undecided.

        Args:
            smallest: The smallest difference of interest; an interval within it is a null.
            higher_is_better: Of the measure.
        """
        small = -smallest < self.equivalence[0] and self.equivalence[1] < smallest
        if not self.apart:
            return "as good" if small else "undecided"
        word = "better" if (self.mean > 0) == higher_is_better else "worse"
        return f"{word}, by less than is of interest" if small else word


def contrast(arm: Array, baseline: Array) -> Contrast:
    """One arm minus another.

    Args:
        arm: Scores [seeds, images], or [seeds] of a measure that has one number a run.
        baseline: Of the other arm; the same seeds in the same order.
    """
    found = statistics.paired(arm, baseline, LEVEL)
    narrow = statistics.paired(arm, baseline, 1 - 2 * (1 - LEVEL))
    return Contrast(found.mean, (found.low, found.high), (narrow.low, narrow.high), found.p, found.deltas)


def family(pairs: Sequence[tuple[Array, Array]]) -> list[Contrast]:
    """Contrasts of several arms, corrected for each other by Holm's method.

    Args:
        pairs: Of each arm its scores and those of what it is compared with, as `contrast` takes them.
    """
    made = [contrast(arm, baseline) for arm, baseline in pairs]
    adjusted = statistics.holm([each.p for each in made])
    least = [_detectable(arm - baseline, (1 - LEVEL) / len(pairs)) for arm, baseline in pairs]
    return [replace(one, adjusted=p, detectable=d) for one, p, d in zip(made, adjusted, least, strict=True)]


def _detectable(d: Array, alpha: float) -> float:
    """The least true difference that is found four times in five, by Student's quantiles; NaN where nothing varies."""
    if len(d) < 2 or not np.isfinite(d).all():
        return float("nan")
    error = math.sqrt(statistics.variance(d).of_mean())
    student = stats.t(len(d) - 1)
    return float(error * (student.isf(alpha / 2) + student.ppf(POWER))) or float("nan")
