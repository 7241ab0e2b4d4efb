"""The statistics of a comparison: what they are by definition, and how often they are wrong."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from softgate import SoftgateError
from softgate.evaluation.generalization import statistics
from softgate.evaluation.generalization.statistics import holm, paired, sign_test, together

FEW = 300
"""Resamples: the quantiles of a sweep's interval need not be known to the third digit."""


def chance(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# -- by definition ------------------------------------------------------------------------------------


def test_with_one_number_a_seed_p_is_that_of_the_paired_t_test():
    a, b = chance(0, 6) + 0.5, chance(1, 6)
    expected = stats.ttest_rel(a, b)
    found = paired(a, b)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.mean == pytest.approx((a - b).mean())
    assert found.deltas == pytest.approx(tuple(a - b))
    low, high = expected.confidence_interval()
    assert found.high - found.low == pytest.approx(high - low, rel=0.25)  # the bootstrap gives the shape


def test_the_parts_of_the_variance_are_those_that_were_put_in():
    seeds, examples, found = 5, 40, []
    for k in range(300):
        d = 0.3 * chance(3 * k, seeds)[:, None] + 0.8 * chance(3 * k + 1, examples) + chance(3 * k + 2, seeds, examples)
        found.append(statistics.variance(d))
    noise = 1 / examples
    assert np.mean([one.seed for one in found]) == pytest.approx(0.3**2 + noise, rel=0.1)
    assert np.mean([one.example for one in found]) == pytest.approx(0.8**2 / examples, rel=0.1)
    expected = 0.3**2 / seeds + 0.8**2 / examples + 1 / (seeds * examples)
    assert np.mean([one.of_mean() for one in found]) == pytest.approx(expected, rel=0.1)


def test_more_seeds_lessen_the_part_of_the_seeds_only():
    spread = statistics.Variance(0.4, 0.1, 4, 100)
    assert spread.of_mean() == pytest.approx(0.2)
    assert spread.of_mean(40) == pytest.approx(0.11)
    assert statistics.Variance(0.4, 0.0, 4, 100).freedom() == pytest.approx(3)
    assert 3 < spread.freedom() < 99


def test_resampled_means_are_those_of_drawing_rows_and_columns(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 64)
    d = chance(0, 4, 7)
    rows, columns = statistics._weights(4, 7, 50, 3)
    assert rows.sum(1).tolist() == [4] * 50
    assert columns.sum(1).tolist() == [7] * 50
    means = []
    for r, c in zip(rows.astype(int), columns.astype(int), strict=True):
        means.append(d[np.repeat(np.arange(4), r)][:, np.repeat(np.arange(7), c)].mean())
    centred = np.array(means) - d.mean()
    expected = centred / math.sqrt((centred**2).mean())
    assert np.allclose(statistics.standardized(d, 50, 3), expected)


@given(st.lists(st.floats(0, 1) | st.floats(0, 0.1), min_size=1, max_size=8))
@example([0.03, 0.04])  # the second step alone would reject at 5 %, the first does not
def test_holm_is_the_step_down_procedure(p):
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.3):
        order, rejected = np.argsort(p, kind="stable"), set()
        for rank, i in enumerate(order):
            if p[i] * (len(p) - rank) > level:
                break
            rejected.add(int(i))
        assert {i for i, value in enumerate(adjusted) if value <= level} == rejected


def test_holm_leaves_out_what_has_no_p():
    assert holm([0.01, math.nan, 0.02])[::2] == [0.02, 0.02]


@pytest.mark.parametrize(
    ("deltas", "p"), [([1, 1, 1, 1, 1], 1 / 16), ([1, 1, 0, 1, 1, 0, 1], 1 / 16), ([1, -1, 1, 0], 1.0), ([0, 0], 1.0)]
)
def test_the_sign_test_counts_seeds(deltas, p):
    assert sign_test(np.array(deltas, dtype=float)) == pytest.approx(p)


@pytest.mark.parametrize(("seeds", "effect", "power"), [(10, 1.0, 0.803), (34, 0.5, 0.808), (5, 0.0, 0.025)])
def test_power_is_that_of_published_tables_of_the_two_sided_paired_t_test(seeds, effect, power):
    """Cohen's d of 1 and 0.5 at 5 %, to three digits; without an effect one end's share of the level."""
    assert statistics.power(effect, statistics.Variance(1.0, 0.0, seeds, 0), seeds, 0.05) == pytest.approx(
        power, abs=1e-3
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.floats(0.2, 3))
def test_the_detectable_effect_is_found_with_80_percent(seeds, scale):
    spread = statistics.Variance(scale, 0.0, seeds, 0)
    least = statistics.detectable(spread, 0.05)
    assert statistics.power(least, spread, seeds, 0.05) == pytest.approx(0.8, abs=1e-3)
    needed = statistics.seeds_needed(least, spread, 0.05)
    assert abs(needed - seeds) <= 1
    if needed > 2:
        assert statistics.power(least, spread, needed - 1, 0.05) < 0.8 + 1e-3


@pytest.mark.parametrize("sign", [1, -1])
def test_a_long_tail_of_the_differences_draws_the_interval_to_the_other_side(sign):
    """Seeds drawn anew miss the one large difference more often than not: the truth may lie further from it."""
    found = paired(sign * np.array([0.0, 0.01, 0.02, 0.01, 0.0, 0.02, 0.01, 1.0]), np.zeros(8))
    below, above = found.mean - found.low, found.high - found.mean
    assert min(below, above) > 0
    assert (below > 1.2 * above) if sign > 0 else (above > 1.2 * below)


def test_where_the_examples_are_too_few_no_number_of_seeds_is_enough():
    assert statistics.seeds_needed(0.1, statistics.Variance(1.0, 0.01, 5, 100), 0.05) is None
    assert statistics.seeds_needed(0.0, statistics.Variance(1.0, 0.0, 5, 100), 0.05) is None


def test_one_seed_makes_no_claim_and_a_broken_number_neither():
    for a in (np.array([[0.9, 1.0]]), np.array([0.9, math.nan, 0.8])):
        found = together([paired(a, np.zeros_like(a))])[0]
        assert math.isnan(found.low)
        assert found.verdict(True) == "not told apart"


def test_seeds_that_agree_to_the_last_digit_prove_nothing():
    assert together([paired(np.full(3, 0.9), np.full(3, 0.8))])[0].verdict(True) == "not told apart"
    same = together([paired(np.full(3, 0.9), np.full(3, 0.9))])[0]
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)


def test_a_verdict_needs_both_the_interval_and_holm():
    one = statistics.Difference(0.1, 0.02, 0.2, 0.03, 0.06, (), None, adjusted=0.03)
    assert one.verdict(higher_is_better=True) == "better"
    assert one.verdict(higher_is_better=False) == "worse"
    for changed in ({"adjusted": 0.09}, {"low": -0.01}, {"adjusted": math.nan}):
        assert statistics.replace(one, **changed).verdict(True) == "not told apart"


def test_the_same_scores_give_the_same_interval_and_an_exchange_of_arms_the_mirrored_one():
    a, b = chance(0, 5, 30), chance(1, 5, 30)
    assert paired(a, b) == paired(a, b)
    there, back = paired(a, b), paired(b, a)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p == pytest.approx(there.p)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((3, 2), (3,)), ((0,), (0,)), ((1, 1, 1), (1, 1, 1))])
def test_scores_that_are_no_pairs_are_refused(shapes):
    with pytest.raises(SoftgateError, match="paired: scores of shapes"):
        paired(*(np.zeros(shape) for shape in shapes))


# -- calibration: sweeps by chance --------------------------------------------------------------------


def verdicts(generator, seeds, effect, noise, arms=3, sweeps=500, skewed=False):
    """How often the first arm is called better, and how often any of the others, which are as good as the baseline."""
    found = wrong = 0

    def accuracies():
        drawn = generator.exponential(noise, seeds) - noise if skewed else generator.normal(0, noise, seeds)
        return 0.9 + drawn

    for _ in range(sweeps):
        baseline, first = accuracies(), accuracies() + effect
        others = [accuracies() for _ in range(arms - 1)]
        compared = [paired(arm, baseline, resamples=FEW) for arm in (first, *others)]
        adjusted = holm([one.p for one in compared])
        said = [statistics.replace(one, adjusted=p).verdict(True) for one, p in zip(compared, adjusted, strict=True)]
        found += said[0] == "better"
        wrong += "better" in said[1:]
    return found / sweeps, wrong / sweeps


@pytest.mark.parametrize("skewed", [False, True])
def test_ten_seeds_find_one_percent_behind_half_a_percent_of_noise_and_a_null_is_not_called_better(skewed):
    """The measure of the report: four arms, 500 sweeps."""
    found, wrong = verdicts(np.random.default_rng(0), 10, effect=0.01, noise=0.005, skewed=skewed)
    assert found >= 0.8
    assert wrong <= 0.05


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_with_few_seeds_nulls_are_not_called_better_where_a_percentile_bootstrap_would(seeds):
    generator = np.random.default_rng(1)
    found, wrong = verdicts(generator, seeds, effect=0.0, noise=0.005, arms=4)
    assert found + wrong <= 0.05
    plain = 0
    for _ in range(500):
        d = generator.normal(size=seeds)
        ends = np.quantile(d[generator.integers(seeds, size=(FEW, seeds))].mean(1), (0.025, 0.975))
        plain += not ends[0] <= 0 <= ends[1]
    assert plain / 500 > 0.07


@pytest.mark.parametrize(("seeds", "by_example"), [(3, 0.0), (5, 0.0), (5, 0.6), (5, 2.0)])
def test_intervals_over_seeds_and_examples_cover_the_truth(seeds, by_example):
    generator, examples, covered = np.random.default_rng(2), 60, 0
    for _ in range(500):
        d = 0.2 * generator.normal(size=seeds)[:, None] + by_example * generator.normal(size=examples)
        d = d + generator.normal(size=(seeds, examples))
        one = paired(d, np.zeros_like(d), resamples=FEW)
        covered += one.low <= 0 <= one.high
    assert covered / 500 >= 0.93


def test_without_the_examples_as_a_sample_the_interval_would_be_too_narrow():
    """The seeds agree on which examples an arm gets right; another test set would be another draw of examples."""
    generator, narrow = np.random.default_rng(3), 0
    for _ in range(200):
        d = 0.1 * generator.normal(size=5)[:, None] + generator.normal(size=60)
        one = paired(d.mean(1), np.zeros(5), resamples=FEW)
        narrow += one.low <= 0 <= one.high
    assert narrow / 200 < 0.8


@given(st.lists(st.floats(-1, 1).filter(lambda x: abs(x) > 1e-3), min_size=2, max_size=2, unique=True))
def test_of_two_seeds_with_one_number_each_interval_and_p_agree(deltas):
    found = paired(np.array(deltas), np.zeros(2), resamples=2000)
    t = stats.ttest_1samp(deltas, 0)
    assert found.p == pytest.approx(t.pvalue)
    low, high = t.confidence_interval(0.95)
    assert found.low == pytest.approx(low, abs=0.02 * (high - low))
    assert found.high == pytest.approx(high, abs=0.02 * (high - low))
