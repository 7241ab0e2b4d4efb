r"""Is one arm better than another? Paired differences over seeds x examples, with few seeds taken seriously.

Two arms are trained with the same seeds and tested on the same examples, so what is compared is
:math:`d_{si}`, the difference of their scores for seed s and example i. Seeds and examples are both samples:

.. math:: d_{si} = \mu + S_s + E_i + \varepsilon_{si}, \qquad
          \mathrm{Var}(\bar d) = \frac{\sigma_S^2}{n_S} + \frac{\sigma_E^2}{n_E} + \frac{\sigma_\varepsilon^2}{n_S n_E}.

The variance is estimated from the mean squares of this crossed layout and its degrees of freedom are Satterthwaite's:
with no variance between examples this is the paired t test over seeds. A percentile bootstrap over a handful of seeds
is too narrow (five seeds of one sign always exclude zero). So the bootstrap, which draws seeds and examples anew
(Owen's pigeonhole bootstrap), gives the interval its shape only; its width is the standard error, times Student's t
in place of the normal distribution's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from softgate.errors import require

Array = NDArray[np.float64]

LEVEL = 0.95
"""Coverage of the intervals; one minus it is the share of false claims allowed over all arms together."""

POWER = 0.8
"""With which probability a claim should succeed, where seeds are counted that it would need."""

MOST_SEEDS = 10_000
"""Where the search for the number of seeds ends."""

BLOCK = 2**24
"""Resampled numbers held at once."""


@dataclass(frozen=True)
class Variance:
    """The variance of a mean difference, by where it comes from.

    Attributes:
        seed: Of one seed's mean difference; divided by the number of seeds.
        example: That more seeds do not lessen: the choice of examples.
        seeds: How many there were.
        examples: How many there were; 0 where a seed has one number only.
    """

    seed: float
    example: float
    seeds: int
    examples: int

    def of_mean(self, seeds: int | None = None) -> float:
        """The variance of the mean over so many seeds."""
        return self.seed / (seeds or self.seeds) + self.example

    def freedom(self, seeds: int | None = None) -> float:
        """Satterthwaite's degrees of freedom for so many seeds."""
        count = seeds or self.seeds
        parts = (self.seed / count) ** 2 / (count - 1)
        if self.example > 0:
            parts += self.example**2 / (self.examples - 1)
        return self.of_mean(count) ** 2 / parts if parts > 0 else count - 1.0


@dataclass(frozen=True)
class Difference:
    """One arm minus another on one measure.

    Attributes:
        mean: Of the differences.
        low: Lower end of the interval; NaN with a single seed.
        high: Upper end.
        p: Two-sided, of no difference.
        sign_p: Of the sign test over seeds, two-sided.
        deltas: For each seed.
        variance: None with a single seed.
        adjusted: p after Holm's correction over the arms that are compared together.
        detectable: The least true difference that these seeds find with a probability of 80 %.
        needed: Seeds with which a true difference of `mean` is found with that probability; None if no number does.
    """

    mean: float
    low: float
    high: float
    p: float
    sign_p: float
    deltas: tuple[float, ...]
    variance: Variance | None
    adjusted: float = math.nan
    detectable: float = math.nan
    needed: int | None = None

    def verdict(self, higher_is_better: bool, level: float = LEVEL) -> str:
        """Says "better" or "worse" only where the interval excludes 0 and Holm's p agrees; else "not told apart"."""
        apart = self.low > 0 or self.high < 0
        if not apart or not self.adjusted <= 1 - level:
            return "not told apart"
        return "better" if (self.mean > 0) == higher_is_better else "worse"


def paired(arm: Array, baseline: Array, level: float = LEVEL, resamples: int = 2000, seed: int = 0) -> Difference:
    """The difference of two arms with the same seeds, on the same examples.

    Args:
        arm: Scores [seeds, examples], or [seeds] where a run has one number only.
        baseline: The same for the other arm; the same seeds in the same order.
        level: Coverage of the interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap; the same scores give the same interval.

    Returns:
        The difference, not yet corrected for other arms.

    Raises:
        SoftgateError: If the shapes differ or are empty.
    """
    arm, baseline = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    require(
        arm.shape == baseline.shape and arm.ndim in (1, 2) and arm.size > 0,
        f"paired: scores of shapes {arm.shape} and {baseline.shape}; [seeds] or [seeds, examples] twice are needed.",
    )
    d = arm - baseline
    deltas = d.mean(1) if d.ndim == 2 else d
    mean, signs = float(deltas.mean()), sign_test(deltas)
    if len(d) < 2 or not np.isfinite(d).all():
        return Difference(mean, math.nan, math.nan, math.nan, signs, tuple(map(float, deltas)), None)
    found = variance(d)
    error = math.sqrt(found.of_mean())
    if error == 0:  # every seed agrees to the last digit: nothing says how far another seed would be
        ends = (0.0, 0.0, 1.0) if mean == 0 else (math.nan, math.nan, math.nan)
    else:
        freedom = found.freedom()
        tail = (1 - level) / 2
        wider = stats.t.ppf(1 - tail, freedom) / stats.norm.ppf(1 - tail)
        left, right = np.quantile(standardized(d, resamples, seed), (tail, 1 - tail))
        p = 2 * stats.t.sf(abs(mean) / error, freedom)
        # An interval by the bootstrap's shape is turned around: a long tail upwards says the truth may be below.
        ends = (mean - right * wider * error, mean - left * wider * error, float(p))
    return Difference(mean, *ends, signs, tuple(map(float, deltas)), found)


def variance(d: Array) -> Variance:
    """The parts of the variance of the mean of differences [seeds] or [seeds, examples], by the mean squares.

    No part is taken to be negative: seeds differ at least as much as chance over examples makes them.
    """
    seeds = len(d)
    rows = d.mean(1) if d.ndim == 2 else d
    between = float(rows.var(ddof=1))
    if d.ndim == 1 or d.shape[1] < 2:
        return Variance(between, 0.0, seeds, 0)
    examples = d.shape[1]
    columns = d.mean(0)
    rest = d - rows[:, None] - columns + d.mean()
    noise = float(np.square(rest).sum()) / ((seeds - 1) * (examples - 1))
    example = float(columns.var(ddof=1)) - noise / seeds
    return Variance(max(between, noise / examples), max(0.0, example) / examples, seeds, examples)


def standardized(d: Array, resamples: int, seed: int) -> Array:
    """Means [resamples] of differences whose seeds and examples were drawn anew, centred and with variance 1.

    Standard normal quantiles where they do not vary at all, and for two numbers.
    """
    if d.ndim == 1 and len(d) < 3:
        return _normal(resamples)  # two seeds drawn anew have three means: no shape, and too narrow
    rows, columns = _weights(len(d), d.shape[1] if d.ndim == 2 else 0, resamples, seed)
    if columns is None:
        means = rows @ d / len(d)
    else:
        means = np.empty(resamples)
        step = max(1, BLOCK // d.shape[1])
        for start in range(0, resamples, step):
            part = slice(start, start + step)
            means[part] = ((rows[part] @ d) * columns[part]).sum(1) / d.size
    centred = means - d.mean()
    spread = float(np.sqrt(np.square(centred).mean()))
    if spread <= 1e-12 * max(1.0, float(np.abs(d).max())):
        return _normal(resamples)
    scaled: Array = centred / spread
    return scaled


def _normal(count: int) -> Array:
    return np.asarray(stats.norm.ppf((np.arange(count) + 0.5) / count))


@lru_cache(maxsize=8)
def _weights(seeds: int, examples: int, resamples: int, seed: int) -> tuple[Array, NDArray[np.uint8] | None]:
    """How often each seed, and each example, is drawn in each resample; the same for every measure and arm."""
    generator = np.random.default_rng(seed)
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(float)
    if examples == 0:
        return rows, None
    columns = np.empty((resamples, examples), dtype=np.uint8)
    for one in columns:
        one[:] = np.bincount(generator.integers(examples, size=examples), minlength=examples)
    return rows, columns


def sign_test(deltas: Array) -> float:
    """The two-sided p of as uneven a split of signs among seeds; seeds without a difference do not count."""
    plus, minus = int((deltas > 0).sum()), int((deltas < 0).sum())
    return float(stats.binomtest(plus, plus + minus).pvalue) if plus + minus else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p: the least level at which each is rejected while the family's error is kept; NaN stays."""
    known = [i for i, value in enumerate(p) if not math.isnan(value)]
    adjusted, worst = [math.nan] * len(p), 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p[i])):
        worst = max(worst, min(1.0, (len(known) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def together(differences: Sequence[Difference], level: float = LEVEL) -> list[Difference]:
    """Corrects the differences of all arms on one measure for each other, and says what more seeds would find.

    Args:
        differences: One for each arm, against the same baseline.
        level: One minus the share of sweeps in which any claim may be false.

    Returns:
        The same with `adjusted`, `detectable` and `needed`; those take Holm's first and strictest step for granted.
    """
    alpha = (1 - level) / max(1, sum(not math.isnan(one.p) for one in differences))
    done = []
    for one, adjusted in zip(differences, holm([one.p for one in differences]), strict=True):
        if one.variance is None or one.variance.of_mean() == 0:
            done.append(replace(one, adjusted=adjusted))
            continue
        least, seeds = detectable(one.variance, alpha), seeds_needed(one.mean, one.variance, alpha)
        done.append(replace(one, adjusted=adjusted, detectable=least, needed=seeds))
    return done


def power(effect: float, spread: Variance, seeds: int, alpha: float) -> float:
    """The probability that so many seeds tell a true difference of this size from none, at level `alpha`."""
    freedom = spread.freedom(seeds)
    limit = stats.t.ppf(1 - alpha / 2, freedom)
    return float(stats.nct.sf(limit, freedom, abs(effect) / math.sqrt(spread.of_mean(seeds))))


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
