"""What seeds can find, and how many find what: by published tables, by simulation, with the doubt of few seeds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from softgate.evaluation.generalization import planning
from softgate.evaluation.generalization.statistics import Variance, two_sided


@pytest.mark.parametrize(("seeds", "effect", "power"), [(10, 1.0, 0.803), (34, 0.5, 0.808), (5, 0.0, 0.025)])
def test_power_is_that_of_published_tables_of_the_two_sided_paired_t_test(seeds, effect, power):
    """Cohen's d of 1 and 0.5 at 5 %, to three digits; without an effect one end's share of the level."""
    assert planning.power(effect, Variance(1.0, 0.0, seeds, 0), seeds, 0.05) == pytest.approx(power, abs=1e-3)


@pytest.mark.parametrize("seeds", [3, 8, 150])
def test_power_is_how_often_the_test_finds_it(seeds):
    generator, spread, effect = np.random.default_rng(0), Variance(1.0, 0.08, seeds, 400), 0.9
    seen = spread.seed / seeds * generator.chisquare(seeds - 1, 4000) / (seeds - 1)
    means = effect + math.sqrt(spread.of_mean(seeds)) * generator.normal(size=4000)
    found = (two_sided(means, seen, spread.example, seeds - 1) <= 0.05) & (means > 0)
    assert planning.power(effect, spread, seeds, 0.05) == pytest.approx(found.mean(), abs=0.025)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.floats(0.2, 3), st.floats(0, 0.1))
def test_the_detectable_difference_is_found_with_80_percent(seeds, scale, example):
    spread = Variance(scale, example * scale, seeds, 500)
    least = planning.detectable(spread, 0.05)
    assert planning.power(least, spread, seeds, 0.05) == pytest.approx(0.8, abs=1e-3)
    needed = planning.seeds_needed(least, spread, 0.05)
    assert abs(needed - seeds) <= 1
    if needed > 2:
        assert planning.power(least, spread, needed - 1, 0.05) < 0.8 + 1e-3


def test_where_the_images_are_too_few_no_number_of_seeds_is_enough():
    assert planning.seeds_needed(0.1, Variance(1.0, 0.01, 5, 100), 0.05) is None
    assert planning.seeds_needed(0.0, Variance(1.0, 0.0, 5, 100), 0.05) is None


def test_the_ends_of_the_deviation_are_those_of_chi_square():
    """Three seeds that say 0.95 say anything from 0.49 to 5.95."""
    low, high = planning.interval(Variance(0.95**2, 0.0, 3, 0))
    assert (math.sqrt(low.seed), math.sqrt(high.seed)) == pytest.approx((0.49, 5.97), abs=0.02)
    ahead = planning.outlook(Variance(0.95**2, 0.0, 3, 0), 0.05, (0.5, 1.0, 2.0))
    assert (ahead.deviation.value, ahead.deviation.low) == pytest.approx((0.95, 0.49), abs=0.01)
    assert ahead.detectable.low / ahead.detectable.value == pytest.approx(ahead.deviation.low / 0.95, rel=1e-3)
    for effect, needed in ahead.seeds:
        assert needed.low <= needed.value <= needed.high
        assert needed.value == planning.seeds_needed(effect, Variance(0.95**2, 0.0, 3, 0), 0.05)


def test_seeds_needed_are_for_declared_differences_and_not_for_the_one_seen():
    """Of the difference seen they would be a function of p alone: 74 where p is .5 at five seeds."""
    spread = Variance(0.01**2, 0.0, 5, 0)
    counted = [planning.outlook(spread, 0.05, (effect,)).seeds[0][1].value for effect in (0.005, 0.01, 0.02)]
    assert counted == sorted(counted, reverse=True)
    assert counted[1] == 10  # Cohen's d of 1


def test_seeds_are_not_taken_to_differ_by_less_than_chance_over_images_makes_them():
    spread = Variance(1e-9, 0.0, 3, 2000, noise=1e-4)
    ahead = planning.outlook(spread, 0.05, (0.01,))
    assert ahead.deviation.value == pytest.approx(0.01)
    assert 0.9 * 0.01 < ahead.deviation.low <= ahead.deviation.value <= ahead.deviation.high
    assert planning.outlook(Variance(0.0, 0.0, 3, 0), 0.05) is None


@pytest.mark.parametrize(("seeds", "example"), [(3, 0.0), (3, 0.3), (8, 0.3)])
def test_the_interval_of_the_detectable_difference_holds_the_true_one(seeds, example):
    generator, true = np.random.default_rng(1), Variance(1.0, example / seeds, seeds, 300, 0.5)
    least, within = planning.detectable(true, 0.05), 0
    mixed = true.example + true.noise / seeds
    for _ in range(150):
        seed = true.seed * generator.chisquare(seeds - 1) / (seeds - 1)
        seen = max(0.0, mixed * generator.chisquare(299) / 299 - true.noise / seeds)
        ahead = planning.outlook(Variance(seed, seen, seeds, 300, 0.5), 0.05).detectable
        within += ahead.low <= least <= ahead.high
    assert within / 150 >= stats.binom.ppf(0.001, 150, 0.95) / 150
