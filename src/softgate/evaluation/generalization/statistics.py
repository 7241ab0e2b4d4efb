r"""Is one arm better than another, or as good? Paired differences over seeds x examples, few seeds taken seriously.

Two arms are trained with the same seeds and tested on the same examples, so what is compared is
:math:`d_{si}`, the difference of their scores for seed s and example i. Seeds and examples are both samples:

.. math:: d_{si} = \mu + S_s + E_i + \varepsilon_{si}, \qquad
          \mathrm{Var}(\bar d) = \underbrace{\frac{\sigma_S^2}{n_S} + \frac{\sigma_\varepsilon^2}{n_S n_E}}_{A}
                               + \underbrace{\frac{\sigma_E^2}{n_E}}_{B}.

A is estimated from the seeds' means with :math:`f = n_S - 1` degrees of freedom, the chance over examples within a seed
included, and nothing is put in its place where it comes out small: a floor under it widens intervals that already pay
for few seeds. B is estimated from the mean squares of the crossed layout, with as many degrees of freedom as there are
examples: it counts as known. So

.. math:: p(\bar d) = \Pr\left(|N(0, A + B)| > |\bar d|\right), \qquad
          \pi(A \mid \hat A) \propto A^{-1} (1 + w B / A)\, p(\hat A \mid A), \quad \hat A \sim A \chi^2_f / f.

Without B this is the paired t test over seeds, which no unbiased test surpasses, and with B alone the normal
distribution. Between these w = 0 is Fisher's answer to the problem of Behrens, too strict (half the level with three
seeds), and w = 1 the prior that matches the level to second order (Ghosh and Kim 2001), too lax with three seeds
(1.3 times the level, 2.3 times at an eighth of it); Satterthwaite's degrees of freedom are further off (1.6 and 4.7
times). With w = f / (f + 4) false claims are .79 to 1.06 times the level at three seeds and nearer to it with more,
whatever A / B. `benchmarks/verdicts.py` prints how often it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from softgate.errors import require

Array = NDArray[np.float64]

LEVEL = 0.95
"""Coverage of the intervals; one minus it is the share of false claims allowed over all arms together."""

NODES = 128
"""Points at which what depends on the variance between seeds is integrated."""


@dataclass(frozen=True)
class Variance:
    """The variance of a mean difference, by where it comes from.

    Attributes:
        seed: Of one seed's mean difference, by the seed and by chance over examples; divided by the number of seeds.
        example: That more seeds do not lessen: the choice of examples.
        seeds: How many there were.
        examples: How many there were; 0 where a seed has one number only.
        noise: The part of `seed` that is chance over examples: seeds cannot truly differ by less.
    """

    seed: float
    example: float
    seeds: int
    examples: int
    noise: float = 0.0

    def of_mean(self, seeds: int | None = None) -> float:
        """The variance of the mean over so many seeds."""
        return self.seed / (seeds or self.seeds) + self.example

    def p(self, distance: float) -> float:
        """The two-sided p of a mean that is so far from what is supposed."""
        return float(two_sided(distance, self.seed / self.seeds, self.example, self.seeds - 1))

    def half_width(self, level: float) -> float:
        """From the mean to either end of the interval: what is further away has a p below 1 - level."""
        return float(half_width(1 - level, self.seed / self.seeds, self.example, self.seeds - 1))


@dataclass(frozen=True)
class Difference:
    """One arm minus another on one measure.

    Attributes:
        mean: Of the differences.
        low: Lower end of the interval; NaN where seeds say nothing of other seeds: one, or all alike.
        high: Upper end.
        p: Two-sided, of no difference.
        sign_p: Of the sign test over seeds, two-sided.
        deltas: For each seed.
        variance: None with a single seed.
        adjusted: p after Holm's correction over the arms that are compared together.
        margin: Two arms that differ by less are equivalent; None does not ask.
        inner: The ends of the interval that must lie within the margin, of coverage 1 - 2 (1 - level).
        outside_p: Of a difference as large as the margin or larger: the larger p of two one-sided tests.
        outside_adjusted: The same after Holm's correction.
    """

    mean: float
    low: float
    high: float
    p: float
    sign_p: float
    deltas: tuple[float, ...]
    variance: Variance | None
    adjusted: float = math.nan
    margin: float | None = None
    inner: tuple[float, float] = (math.nan, math.nan)
    outside_p: float = math.nan
    outside_adjusted: float = math.nan

    def verdict(self, higher_is_better: bool, level: float = LEVEL) -> str:
        """What may be said: "better", "worse", "equivalent" or "not told apart".

        "better" and "worse" only where the interval excludes 0 and Holm's p agrees. Of what is then left, "equivalent"
        only where the inner interval lies within the margin and Holm's p of the two one-sided tests agrees.
        """
        apart = self.low > 0 or self.high < 0
        if apart and self.adjusted <= 1 - level:
            return "better" if (self.mean > 0) == higher_is_better else "worse"
        return "equivalent" if self.equivalent(level) else "not told apart"

    def equivalent(self, level: float = LEVEL) -> bool:
        """Whether the difference is shown to be smaller than the margin (Schuirmann's two one-sided tests)."""
        if self.margin is None:
            return False
        within = -self.margin < self.inner[0] and self.inner[1] < self.margin
        return within and self.outside_adjusted <= 1 - level


def paired(arm: ArrayLike, baseline: ArrayLike, level: float = LEVEL, margin: float | None = None) -> Difference:
    """The difference of two arms with the same seeds, on the same examples.

    Args:
        arm: Scores [seeds, examples], or [seeds] where a run has one number only.
        baseline: The same for the other arm; the same seeds in the same order.
        level: Coverage of the interval.
        margin: The smallest difference that matters, in the unit of the scores; None asks for no equivalence.

    Returns:
        The difference, not yet corrected for other arms: `together` does.

    Raises:
        SoftgateError: If the shapes differ or are empty.
    """
    arm, baseline = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    require(
        arm.shape == baseline.shape and arm.ndim in (1, 2) and arm.size > 0,
        f"paired: scores of shapes {arm.shape} and {baseline.shape}; [seeds] or [seeds, examples] twice are needed.",
    )
    return estimate(arm - baseline, level, margin)


def estimate(d: Array, level: float = LEVEL, margin: float | None = None) -> Difference:
    """As `paired`, from the differences [seeds, examples] or [seeds] themselves."""
    deltas = d.mean(1) if d.ndim == 2 else d
    mean, signs, each = float(deltas.mean()), sign_test(deltas), tuple(map(float, deltas))
    nothing = Difference(mean, math.nan, math.nan, math.nan, signs, each, None, margin=margin)
    if len(d) < 2 or not np.isfinite(d).all():
        return nothing
    spread = variance(d)
    if spread.seed <= np.square(1e-12 * np.abs(d).max()):  # all alike: nothing says how far another seed would be
        return replace(nothing, p=math.nan if mean else 1.0, variance=spread)
    outer = spread.half_width(level)
    found = replace(nothing, low=mean - outer, high=mean + outer, p=spread.p(mean), variance=spread)
    if margin is None:
        return found
    width = spread.half_width(2 * level - 1)
    outside = max(_one_sided(margin + mean, spread), _one_sided(margin - mean, spread))
    return replace(found, inner=(mean - width, mean + width), outside_p=outside)


def _one_sided(distance: float, spread: Variance) -> float:
    """The p of a mean that lies so far inside a limit; above 1/2 where it lies outside."""
    half = spread.p(distance) / 2
    return half if distance > 0 else 1 - half


def variance(d: Array) -> Variance:
    """The parts of the variance of the mean of differences [seeds] or [seeds, examples], by the mean squares.

    The part of the seeds is never below 0 by itself; that of the examples, a difference of two mean squares, is not
    taken to be.
    """
    seeds = len(d)
    rows = d.mean(1) if d.ndim == 2 else d
    between = float(rows.var(ddof=1))
    if d.ndim == 1 or d.shape[1] < 2:
        return Variance(between, 0.0, seeds, 0)
    examples = d.shape[1]
    columns = d.mean(0)
    # The sum of squares of what is left is the whole minus those of seeds and examples.
    squares = float(np.square(d - d.mean()).sum())
    rest = squares - examples * (seeds - 1) * between - seeds * (examples - 1) * float(columns.var(ddof=1))
    noise = max(0.0, rest) / ((seeds - 1) * (examples - 1))
    example = float(columns.var(ddof=1)) - noise / seeds
    return Variance(between, max(0.0, example) / examples, seeds, examples, noise / examples)


def two_sided(distance: ArrayLike, seed: ArrayLike, example: ArrayLike, freedom: int) -> Array:
    """The two-sided p of means, as the module says.

    Args:
        distance: From the mean to what is supposed, any shape.
        seed: The estimated variance of the mean by its seeds, > 0, A above; of a shape that fits.
        example: That by its examples, B above.
        freedom: Degrees of freedom of the first.
    """
    weight, deviation = _posterior(seed, example, freedom)
    far = np.abs(np.asarray(distance, dtype=float))[..., None]
    found: Array = 2 * (weight * special.ndtr(-far / deviation)).sum(-1)
    return found


def half_width(alpha: float, seed: ArrayLike, example: ArrayLike, freedom: int) -> Array:
    """The distance at which `two_sided` is alpha; arguments as there."""
    a, b = np.broadcast_arrays(np.asarray(seed, dtype=float), np.asarray(example, dtype=float))
    t, z = special.stdtrit(freedom, 1 - alpha / 2), special.ndtri(1 - alpha / 2)
    width = np.sqrt(t**2 * a + z**2 * b)
    if not b.any():
        return np.asarray(width)
    weight, deviation = _posterior(a, b, freedom)
    for _ in range(30):  # Newton's steps from log to log, where the curve is nearly straight
        distance = width[..., None] / deviation
        p = 2 * (weight * special.ndtr(-distance)).sum(-1)
        fall = 2 * (weight * distance * np.exp(-(distance**2) / 2)).sum(-1) / math.sqrt(2 * math.pi)
        step = np.log(p / alpha) * p / fall
        width = width * np.exp(step)
        if np.abs(step).max() < 1e-10:
            break
    return np.asarray(width)


def _posterior(seed: ArrayLike, example: ArrayLike, freedom: int) -> tuple[Array, Array]:
    """Weights and standard deviations of the normal distributions whose mixture the mean's error is, on a last axis."""
    x, weight = chi_square(freedom)
    a, b = (np.asarray(one, dtype=float)[..., None] for one in (seed, example))
    weights = weight * (a + _lean(freedom) * b * x / freedom)
    return weights / weights.sum(-1, keepdims=True), np.sqrt(freedom * a / x + b)


def _lean(freedom: int) -> float:
    """The w above: how far the prior leans from Fisher's answer to the matching one."""
    return freedom / (freedom + 4)


@lru_cache(maxsize=256)
def chi_square(freedom: int) -> tuple[Array, Array]:
    """Points and weights of a sum that is the mean over a chi-square distribution, by Gauss and Legendre.

    They are spread evenly over its root, over which everything here is smooth.
    """
    law = stats.chi2(freedom)
    left, right = math.sqrt(law.ppf(1e-15)), math.sqrt(law.isf(1e-15))
    places, weights = np.polynomial.legendre.leggauss(NODES)
    root = left + (right - left) * (places + 1) / 2
    weights = weights * root * law.pdf(root**2)
    return root**2, weights / weights.sum()


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


def together(differences: Sequence[Difference]) -> list[Difference]:
    """Corrects the differences of all arms on one measure, against the same baseline, for each other."""
    apart = holm([one.p for one in differences])
    outside = holm([one.outside_p for one in differences])
    return [replace(one, adjusted=a, outside_adjusted=o) for one, a, o in zip(differences, apart, outside, strict=True)]
