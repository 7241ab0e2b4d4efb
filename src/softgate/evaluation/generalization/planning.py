"""What these seeds can find and what others would: power, the detectable difference, seeds needed; with their doubt.

All of it rests on the standard deviation between seeds, and three seeds know that badly: where they say 0.95 it is
anywhere from 0.49 to 5.95. So every figure stands between those of the two ends of the chi-square intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from scipy import special, stats

from softgate.evaluation.generalization.statistics import LEVEL, Array, Variance, chi_square, half_width

POWER = 0.8
"""With which probability a claim should succeed, where seeds are counted that it would need."""

MOST_SEEDS = 10_000
"""Where the search for the number of seeds ends."""

MANY = 100
"""From so many seeds on Satterthwaite's degrees of freedom are as good as the integral."""


@dataclass(frozen=True)
class Between:
    """A figure and the ends of its interval; None is more than `MOST_SEEDS`, or never."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Outlook:
    """What more seeds would do, at the level that Holm's first and strictest step leaves to each arm.

    Attributes:
        deviation: Of one seed's difference.
        detectable: The least true difference that these seeds find four times in five.
        seeds: For each declared true difference, the seeds that find it four times in five.
    """

    deviation: Between
    detectable: Between
    seeds: tuple[tuple[float, Between], ...]


def outlook(spread: Variance, alpha: float, effects: Sequence[float] = (), level: float = LEVEL) -> Outlook | None:
    """What these seeds can find, and how many find what.

    Args:
        spread: Of the differences that were measured.
        alpha: Level of each arm's test.
        effects: True differences to count seeds for.
        level: Coverage of the intervals.

    Returns:
        The figures; None where all seeds are alike, or there is one.
    """
    if spread.seeds < 2 or spread.seed == 0:
        return None
    ends = (replace(spread, seed=max(spread.seed, spread.noise)), *interval(spread, level))

    def over(figure: Callable[[Variance], float | None]) -> Between:
        return Between(*map(figure, ends))

    counted = tuple((effect, over(partial(seeds_needed, effect, alpha=alpha))) for effect in effects)
    return Outlook(over(lambda one: math.sqrt(one.seed)), over(lambda one: detectable(one, alpha)), counted)


def interval(spread: Variance, level: float = LEVEL) -> tuple[Variance, Variance]:
    """The least and the greatest variances that those measured allow, each by chi-square.

    That between seeds is not below what chance over examples makes of it, at the same end of that one's interval.
    """

    def ends(value: float, freedom: int) -> list[float]:
        return [value * freedom / float(stats.chi2.isf(share, freedom)) for share in (tail, 1 - tail)]

    tail, freedom, others = (1 - level) / 2, spread.seeds - 1, max(1, spread.examples - 1)
    chance = ends(spread.noise, others)  # that of a hard and an easy image differs: images are what it is a mean over
    between = list(map(max, ends(spread.seed, freedom), chance))
    mixed = ends(spread.example + spread.noise / spread.seeds, others)  # the mean square of examples holds chance too
    among = [max(0.0, each - spread.noise / spread.seeds) for each in mixed]
    low, high = (replace(spread, seed=s, example=e) for s, e in zip(between, among, strict=True))
    return low, high


def power(effect: float, spread: Variance, seeds: int, alpha: float) -> float:
    """The probability that so many seeds tell a true difference of this size from none, on its side, at level `alpha`.

    Args:
        effect: The true difference.
        spread: The true variances; those that the seeds will see vary around them.
        seeds: How many.
        alpha: Level of the test.
    """
    x, weight = chi_square(seeds - 1)
    seen = spread.seed / seeds * x / (seeds - 1)
    width = _widths(alpha, seen, spread.example, seeds - 1)
    deviation = math.sqrt(spread.of_mean(seeds))
    return float((weight * special.ndtr((abs(effect) - width) / deviation)).sum())


def _widths(alpha: float, seed: Array, example: float, freedom: int) -> Array:
    """As `half_width`; between seeds and examples off a table, and for many seeds by Satterthwaite."""
    if example == 0:
        return half_width(alpha, seed, 0.0, freedom)
    whole = seed + example
    share = seed / whole
    if freedom >= MANY:
        factor = special.stdtrit(freedom / np.maximum(share, 1e-9) ** 2, 1 - alpha / 2)
    else:
        factor = np.interp(share, *_table(alpha, freedom))
    widths: Array = factor * np.sqrt(whole)
    return widths


@lru_cache(maxsize=512)
def _table(alpha: float, freedom: int) -> tuple[Array, Array]:
    """Shares of the variance that are the seeds', and the half width for a variance of 1 at each."""
    share = 1 - np.linspace(1, 0, 65) ** 2
    share[0] = 1e-9
    return share, half_width(alpha, share, 1 - share, freedom)


def detectable(spread: Variance, alpha: float, seeds: int | None = None) -> float:
    """The least true difference that is found with a probability of 80 %, by bisection."""
    count = seeds or spread.seeds
    low, high = 0.0, math.sqrt(spread.of_mean(count))
    while power(high, spread, count, alpha) < POWER:
        high *= 2
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, spread, count, alpha) >= POWER else (middle, high)
    return high


def seeds_needed(effect: float, spread: Variance, alpha: float) -> int | None:
    """The least number of seeds that finds a true difference of this size with a probability of 80 %.

    None where even `MOST_SEEDS` do not: there are too few examples, or next to no effect.
    """

    def enough(seeds: int) -> bool:
        return power(effect, spread, seeds, alpha) >= POWER

    if not effect or not enough(MOST_SEEDS):
        return None
    low, high = 1, 2
    while not enough(high):
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
