"""How often a comparison's verdicts are wrong and how often they find what is there: `benchmarks/verdicts.py`.

Sweeps are drawn from a logit-normal model of right and wrong answers: the probability that arm k, trained with seed s,
gets image i right is the logistic function of

    ability + seed[s] + seed of the arm[k, s] + difficulty[i] + taste of the arm[k, i],

all normal, and the answers are drawn with it. Arms share seeds and images, and one baseline. Every sweep goes through
the statistics of `evaluate.py` itself, one arm alone and eight after Holm, and beside them through the paired t test on
the means of seeds. Where images matter that test is not a rival: its null is about these images, not about others.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import report
from scipy import special

from softgate import files
from softgate.evaluation.generalization import planning
from softgate.evaluation.generalization.statistics import LEVEL, Variance, estimate, holm, together
from softgate.figures import style

ARMS = 8
ABILITY, SEED, DIFFICULTY = 1.9, 0.05, 3.0
"""On the logit's scale: 70 % top-1, 0.5 points between seeds of one arm, most images easy or hard."""
GAUSS = np.polynomial.hermite_e.hermegauss(99)
MARGIN = 0.01
"""Of equivalence: a point of top-1, as is the true difference."""


@dataclass(frozen=True)
class Regime:
    """What differs between arms that are as good as each other, in standard deviations on the logit's scale."""

    name: str
    seeds: float
    images: float


REGIMES = (
    Regime("seeds", 0.022, 0.0),  # the difference of two arms has a standard deviation of 0.3 points between seeds
    Regime("seeds and images", 0.022, 1.0),
    Regime("images", 0.0, 1.0),
    Regime("neither", 0.0, 0.0),
)


def top_1(shift: float, regime: Regime) -> float:
    """The expected share of right answers, by quadrature."""
    deviation = math.hypot(SEED, DIFFICULTY, regime.seeds, regime.images)
    points, weights = GAUSS
    return float((weights * special.expit(ABILITY + shift + deviation * points)).sum() / weights.sum())


def shift_of(effect: float, regime: Regime) -> float:
    """The shift on the logit's scale that is so many points of top-1, by bisection."""
    low, high, goal = -4.0, 4.0, top_1(0, regime) + effect
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if top_1(middle, regime) < goal else (low, middle)
    return low


def drawn(generator: np.random.Generator, regime: Regime, seeds: int, images: int, arms: int, shift: float):
    """Right answers [arms + 1, seeds, images] of one sweep, the baseline's first; the shift is the first arm's."""

    def normal(scale: float, *shape: int):
        return generator.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    rows = normal(SEED, seeds) + normal(regime.seeds, arms + 1, seeds)
    columns = ABILITY + normal(DIFFICULTY, images) + normal(regime.images, arms + 1, images)
    columns[1] += shift
    against = np.exp(-rows)[:, :, None] * np.exp(-columns)[:, None, :]
    return generator.random(against.shape, dtype=np.float32) * (1 + against) < 1


def t_test(deltas: np.ndarray) -> np.ndarray:
    """The p of the paired t test of each row; without scipy's warnings where all seeds of a row are alike."""
    seeds = deltas.shape[1]
    errors = np.maximum(deltas.std(1, ddof=1), 1e-12) / math.sqrt(seeds)
    return 2 * special.stdtr(seeds - 1, -np.abs(deltas.mean(1)) / errors)


@dataclass
class Tally:
    """Counts over sweeps; shares after division by their number."""

    alone: int = 0
    by_t_alone: int = 0
    among: int = 0
    by_t_among: int = 0
    any_null: int = 0
    by_t_any_null: int = 0
    covered: int = 0
    equivalent: int = 0


def swept(regime: Regime, seeds: int, images: int, effect: float, sweeps: int, arms: int = ARMS, number: int = 0):
    """Runs sweeps in which the first arm is better by the effect and the others are as good as the baseline.

    Returns:
        The shares of sweeps with each kind of verdict; of each sweep the first arm's variances and its p by the t test.
    """
    generator = np.random.default_rng(
        [number, seeds, round(1e5 * effect), [one.name for one in REGIMES].index(regime.name)]
    )
    shift, tally, spreads, ps, level = shift_of(effect, regime), Tally(), [], [], 1 - LEVEL
    for _ in range(sweeps):
        right = drawn(generator, regime, seeds, images, arms, shift).view(np.int8)
        found = [
            estimate((one - right[0]).astype(float), margin=None if k else MARGIN) for k, one in enumerate(right[1:])
        ]
        deltas = np.array([one.deltas for one in found])
        by_t = t_test(deltas)
        together_p = [one.verdict(True) in ("better", "worse") for one in together(found)]
        together_t = np.array(holm(list(by_t))) <= level
        (alone,) = together(found[:1])
        tally.alone += alone.verdict(True) in ("better", "worse")
        tally.equivalent += alone.equivalent()
        tally.by_t_alone += by_t[0] <= level
        tally.among += together_p[0]
        tally.by_t_among += together_t[0]
        tally.any_null += any(together_p[1 if effect else 0 :])
        tally.by_t_any_null += together_t[1 if effect else 0 :].any()
        tally.covered += alone.low <= effect <= alone.high
        spreads.append(found[0].variance)
        ps.append(by_t[0])
    return {key: float(value) / sweeps for key, value in vars(tally).items()}, spreads, np.array(ps)


def mean_of(spreads: list[Variance]) -> Variance:
    """Close to the true variances."""
    seed, example, noise = (
        float(np.mean([getattr(one, key) for one in spreads])) for key in ("seed", "example", "noise")
    )
    return Variance(max(seed, noise), example, spreads[0].seeds, spreads[0].examples, noise)


def foretold(spreads: list[Variance], few: int) -> tuple[float, float]:
    """The detectable difference, in points, and in how many sweeps its interval holds it."""
    true, alpha = planning.detectable(mean_of(spreads), 1 - LEVEL), 1 - LEVEL
    within = 0
    for one in spreads[:few]:
        low, high = (planning.detectable(end, alpha) for end in planning.interval(one))
        within += low <= true <= high
    return 100 * true, within / len(spreads[:few])


def table(given: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each regime and number of seeds."""
    rows: list[dict[str, object]] = []
    for regime in REGIMES:
        for seeds in given.seeds:
            null, spreads, ps = swept(regime, seeds, given.images, 0.0, given.sweeps, number=given.seed)
            real, _, real_ps = swept(regime, seeds, given.images, given.effect / 100, given.sweeps, number=given.seed)
            least, held = foretold(spreads, given.sweeps // 5)
            row: dict[str, object] = {"differ by": regime.name, "seeds": seeds}
            row |= {"size": null["alone"], "t": null["by_t_alone"]}
            row |= {"size of 8": null["any_null"], "t of 8": null["by_t_any_null"], "coverage": null["covered"]}
            row |= {"coverage there": real["covered"], "power": real["alone"], "power of t": real["by_t_alone"]}
            row["of t at 5 %"] = float((real_ps <= np.quantile(ps, 1 - LEVEL)).mean())  # as if its size were right
            row |= {"power in 8": real["among"], "of t in 8": real["by_t_among"]}
            row |= {"equivalent": null["equivalent"], "wrongly": real["equivalent"]}
            rows.append(row | {"detectable": least, "its interval": held})
            print(row, flush=True)
    return rows


@style.context()
def curves(given: argparse.Namespace, path: Path) -> None:
    """Power over the true difference, as planned and as simulated, where seeds matter and where images do too."""
    figure = style.figure(8.4, 3.4)
    effects = np.array(given.curve)
    for place, regime in enumerate(REGIMES[:2], start=1):
        axes = figure.add_subplot(1, 2, place)
        for count, ink in zip(given.seeds, style.ARMS[1:], strict=False):
            spread, dots = None, []
            for effect in effects:
                shares, spreads, _ = swept(regime, count, given.images, effect / 100, given.sweeps, 1, given.seed + 1)
                spread = spread or mean_of(spreads)
                dots.append(shares["alone"])
            fine = np.linspace(0, effects.max(), 60)
            planned = [planning.power(effect / 100, spread, count, 1 - LEVEL) for effect in fine]
            axes.plot(fine, planned, color=ink, label=f"{count} seeds")
            axes.plot(effects, dots, "o", color=ink, markersize=4)
        axes.axhline(planning.POWER, color="#888888", linewidth=0.8)
        axes.set_xlabel("true difference in top-1, percentage points", fontsize=9)
        axes.set_title(f"arms differ by {regime.name}", fontsize=10, loc="left")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0)
    figure.axes[0].set_ylabel("share of sweeps that find it", fontsize=9)
    figure.axes[0].legend(fontsize=8, loc="lower right")
    files.save_picture(style.picture(figure), path)
    print(f"written: {path}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 8, 10])
    options.add_argument("--images", type=int, default=3925, help="as many as Imagenette has")
    options.add_argument("--effect", type=float, default=1.0, help="points of top-1 that power is for")
    options.add_argument("--sweeps", type=int, default=1000, help="for each cell")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--curve", type=float, nargs="*", default=[], help="draw power at these differences instead")
    options.add_argument("--out", type=Path, default=Path("verdicts.json"))
    given = options.parse_args()
    started = time.perf_counter()
    if given.curve:
        curves(given, given.out.with_suffix(".png"))
    else:
        report(f"{given.sweeps} sweeps a cell, {given.images} images", table(given), given.out)
    print(f"{time.perf_counter() - started:.0f} s")
