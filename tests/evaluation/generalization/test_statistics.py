"""The statistics of a comparison: what they are by definition, and beside independent programs."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from softgate import SoftgateError
from softgate.evaluation.generalization import statistics
from softgate.evaluation.generalization.statistics import Variance, estimate, holm, paired, sign_test, together


def chance(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# -- the parts of the variance ------------------------------------------------------------------------


def anova(d):
    """The mean squares of seeds, examples and the rest of a crossed layout, by loops over the textbook's formulas."""
    seeds, examples = len(d), len(d[0])
    grand = sum(sum(row) for row in d) / (seeds * examples)
    rows = [sum(row) / examples for row in d]
    columns = [sum(d[s][i] for s in range(seeds)) / seeds for i in range(examples)]
    by_seed = examples * sum((row - grand) ** 2 for row in rows) / (seeds - 1)
    by_example = seeds * sum((column - grand) ** 2 for column in columns) / (examples - 1)
    rest = sum((d[s][i] - rows[s] - columns[i] + grand) ** 2 for s in range(seeds) for i in range(examples))
    return by_seed, by_example, rest / ((seeds - 1) * (examples - 1))


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 99), st.booleans())
def test_the_parts_of_the_variance_are_those_of_a_slow_analysis_of_variance(seeds, examples, seed, whole):
    d = chance(seed, seeds, examples) + chance(seed + 1, seeds, 1) + chance(seed + 2, examples)
    d = np.sign(d.round()) if whole else d  # accuracies differ by -1, 0 or 1
    by_seed, by_example, rest = anova(d.tolist())
    found = statistics.variance(d)
    assert found.seed == pytest.approx(by_seed / examples)
    assert found.noise == pytest.approx(rest / examples, abs=1e-12)
    assert found.example == pytest.approx(max(0, by_example - rest) / seeds / examples, abs=1e-12)
    assert (found.seeds, found.examples) == (seeds, examples)


def test_the_parts_of_the_variance_are_those_that_were_put_in():
    seeds, examples, found = 5, 40, []
    for k in range(300):
        d = 0.3 * chance(3 * k, seeds)[:, None] + 0.8 * chance(3 * k + 1, examples) + chance(3 * k + 2, seeds, examples)
        found.append(statistics.variance(d))
    noise = 1 / examples
    assert np.mean([one.seed for one in found]) == pytest.approx(0.3**2 + noise, rel=0.1)
    assert np.mean([one.noise for one in found]) == pytest.approx(noise, rel=0.02)
    assert np.mean([one.example for one in found]) == pytest.approx(0.8**2 / examples, rel=0.1)
    expected = 0.3**2 / seeds + 0.8**2 / examples + 1 / (seeds * examples)
    assert np.mean([one.of_mean() for one in found]) == pytest.approx(expected, rel=0.1)


def test_more_seeds_lessen_the_part_of_the_seeds_only():
    spread = Variance(0.4, 0.1, 4, 100)
    assert spread.of_mean() == pytest.approx(0.2)
    assert spread.of_mean(40) == pytest.approx(0.11)


def digits():
    """Two small networks of scikit-learn on real digits: who is right on which image [arm, seed, image]."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    train, test = slice(0, 150), slice(1400, 1500)

    def right(width, seed):
        network = MLPClassifier((width,), random_state=seed, max_iter=40, learning_rate_init=0.01)
        return network.fit(x[train] / 16, y[train]).predict(x[test] / 16) == y[test]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are stopped before they converge
        return np.array([[right(width, seed) for seed in range(5)] for width in (24, 8)], dtype=float)


def test_a_mixed_model_of_statsmodels_finds_the_same_on_real_data():
    """Crossed random effects of seeds and images, by REML; its p takes the deviation between five seeds for known."""
    statsmodels = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed")
    wide, narrow = digits()
    d = wide - narrow
    seeds, images = d.shape
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = {"d": d.ravel(), "seed": np.repeat(np.arange(seeds), images), "image": np.tile(np.arange(images), seeds)}
    effects = {"seed": "0 + C(seed)", "image": "0 + C(image)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # variances are near the boundary at 0
        whole = {"groups": np.ones(d.size), "data": pandas.DataFrame(table)}
        model = statsmodels.MixedLM.from_formula("d ~ 1", **whole, vc_formula=effects)
        fitted = model.fit(reml=True, method=["nm"])
    parts = dict(zip(model.exog_vc.names, fitted.vcomp, strict=True))
    found = paired(wide, narrow)
    assert found.mean == pytest.approx(fitted.fe_params.iloc[0], abs=1e-9)
    assert found.variance.seed - found.variance.noise == pytest.approx(parts["seed"], rel=2e-3)
    assert found.variance.example * images == pytest.approx(parts["image"], rel=2e-3)
    assert found.variance.noise * images == pytest.approx(fitted.scale, rel=2e-3)
    assert math.sqrt(found.variance.of_mean()) == pytest.approx(fitted.bse_fe.iloc[0], rel=2e-3)
    assert found.p > 2 * stats.norm.sf(found.mean / fitted.bse_fe.iloc[0])


# -- p and the interval -------------------------------------------------------------------------------


def test_with_one_number_a_seed_it_is_the_paired_t_test():
    a, b = chance(0, 6) + 0.5, chance(1, 6)
    expected = stats.ttest_rel(a, b)
    found = paired(a, b)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.mean == pytest.approx((a - b).mean())
    assert found.deltas == pytest.approx(tuple(a - b))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_where_images_do_not_matter_it_is_the_paired_t_test_however_little_seeds_differ():
    """No floor under the variance between seeds: chance over images is in it already."""
    d = np.zeros((3, 1000))
    for s, count in enumerate((20, 21, 23)):  # nearer to each other than chance over images makes them
        d[s, 100 * s : 100 * s + 40] = -1
        d[s, 100 * s : 100 * s + count] = 1  # and on other images: those are not alike for all seeds
    found = estimate(d)
    assert found.variance.example == 0
    assert found.variance.seed < found.variance.noise
    assert found.p == pytest.approx(stats.ttest_1samp(d.mean(1), 0).pvalue, rel=1e-9)


def by_definition(distance, a, b, freedom):
    """The module's p: the normal tail over the posterior of A, by quadrature over log A."""
    w = freedom / (freedom + 4)

    def posterior(log):
        variance = math.exp(log)
        likelihood = stats.chi2.pdf(freedom * a / variance, freedom) * freedom / variance
        return (1 + w * b / variance) / variance * likelihood * variance  # the last one is of d log A

    def tail(log):
        return posterior(log) * 2 * stats.norm.sf(abs(distance) / math.sqrt(math.exp(log) + b))

    around = math.log(a)
    whole, part = (integrate.quad(f, around - 5, around + 30, limit=400)[0] for f in (posterior, tail))
    return part / whole


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30])
@pytest.mark.parametrize("b", [0.0, 0.1, 1.0, 20.0])
def test_p_is_the_tail_over_the_posterior_of_the_variance(freedom, b):
    for distance in (0.3, 2.0, 6.0):
        expected = by_definition(distance, 1.0, b, freedom)
        assert statistics.two_sided(distance, 1.0, b, freedom) == pytest.approx(expected, rel=1e-4, abs=1e-12)


@given(st.floats(0, 30), st.sampled_from([1, 2, 4, 50]))
def test_p_is_students_without_the_part_of_the_images_and_the_normal_distributions_with_that_alone(distance, freedom):
    assert statistics.two_sided(distance, 1.0, 0.0, freedom) == pytest.approx(
        2 * stats.t.sf(distance, freedom), rel=1e-6
    )
    assert statistics.two_sided(distance, 1e-14, 1.0, freedom) == pytest.approx(2 * stats.norm.sf(distance), abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 30), st.floats(0, 1), st.floats(1e-6, 1e3), st.sampled_from([0.05, 0.1, 0.00625, 0.001]))
def test_the_interval_ends_where_p_is_its_level(freedom, share, scale, alpha):
    a, b = max(share, 1e-6) * scale, (1 - share) * scale
    width = statistics.half_width(alpha, a, b, freedom)
    assert statistics.two_sided(width, a, b, freedom) == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("among", [1, 8])
def test_false_claims_are_as_frequent_as_promised_whatever_share_of_the_variance_is_the_images(seeds, among):
    """By integration over what the seeds may show, the image part being known: at the level, and at an eighth of it."""
    alpha = 0.05 / among
    x, weight = statistics.chi_square(seeds - 1)
    found = []
    for share in (0.02, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 1):
        seen = share * x / (seeds - 1)
        widths = statistics.half_width(alpha, seen, 1 - share, seeds - 1)
        found.append(2 * float((weight * stats.norm.sf(widths)).sum()))
    low, high = {1: (0.03, 0.06), 8: (0.5 * alpha, 1.7 * alpha)}[among]
    assert low < min(found)
    assert max(found) < high


def test_an_exchange_of_arms_mirrors_the_interval():
    a, b = chance(0, 5, 30), chance(1, 5, 30)
    there, back = paired(a, b), paired(b, a)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p == pytest.approx(there.p)


def test_one_seed_makes_no_claim_and_a_broken_number_neither():
    for a in (np.array([[0.9, 1.0]]), np.array([0.9, math.nan, 0.8])):
        found = together([paired(a, np.zeros_like(a), margin=1)])[0]
        assert math.isnan(found.low)
        assert found.verdict(True) == "not told apart"


def test_seeds_that_agree_to_the_last_digit_prove_nothing():
    alike = np.zeros((3, 10))
    for row, place in enumerate((1, 4, 7)):
        alike[row, place] = 1  # other images, the same number of them
    for d in (np.full(3, 0.9) - np.full(3, 0.8), alike):
        found = together([estimate(d, margin=1)])[0]
        assert math.isnan(found.low)
        assert math.isnan(found.p)
        assert found.verdict(True) == "not told apart"
    same = together([paired(np.full(3, 0.9), np.full(3, 0.9))])[0]
    assert math.isnan(same.low)
    assert same.p == 1


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((3, 2), (3,)), ((0,), (0,)), ((1, 1, 1), (1, 1, 1))])
def test_scores_that_are_no_pairs_are_refused(shapes):
    with pytest.raises(SoftgateError, match="paired: scores of shapes"):
        paired(*(np.zeros(shape) for shape in shapes))


# -- several arms, and what may be said ---------------------------------------------------------------


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


def test_a_verdict_needs_both_the_interval_and_holm():
    one = statistics.Difference(0.1, 0.02, 0.2, 0.03, 0.06, (), None, adjusted=0.03)
    assert one.verdict(higher_is_better=True) == "better"
    assert one.verdict(higher_is_better=False) == "worse"
    for changed in ({"adjusted": 0.09}, {"low": -0.01}, {"adjusted": math.nan}):
        assert statistics.replace(one, **changed).verdict(True) == "not told apart"


def test_equivalence_needs_both_the_inner_interval_and_holm_and_says_nothing_of_arms_told_apart():
    null = {"low": -0.1, "adjusted": 0.5, "margin": 0.2, "inner": (-0.1, 0.19), "outside_adjusted": 0.04}
    one = statistics.Difference(0.1, 0.02, 0.2, 0.03, 0.06, (), None)
    assert statistics.replace(one, **null).verdict(True) == "equivalent"
    for changed in ({"outside_adjusted": 0.06}, {"inner": (-0.21, 0.19)}, {"inner": (0.1, 0.2)}, {"margin": None}):
        assert statistics.replace(one, **{**null, **changed}).verdict(True) == "not told apart"
    apart = statistics.replace(one, **{**null, "low": 0.02, "adjusted": 0.01})
    assert apart.verdict(True) == "better"
    assert apart.equivalent()


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(0, 50), st.floats(0.1, 3), st.sampled_from([0.9, 0.95]), st.booleans())
def test_the_inner_interval_lies_within_the_margin_where_both_one_sided_tests_reject(seeds, seed, margin, level, flat):
    d = chance(seed, seeds) if flat else chance(seed, seeds, 1) / 3 + chance(seed + 1, seeds, 12)
    found = estimate(d, level, margin)
    mean, spread = found.mean, found.variance
    for limit in (-margin, margin):
        t = (mean - limit) / math.sqrt(spread.of_mean())
        if flat:  # the textbook's test of being on the inner side of this limit
            expected = stats.t.sf(abs(t), seeds - 1) if (t > 0) == (limit < 0) else stats.t.cdf(abs(t), seeds - 1)
            assert found.outside_p >= expected * (1 - 1e-6)
    inside = -margin < found.inner[0] and found.inner[1] < margin
    assert inside == (found.outside_p < 1 - level)
    (alone,) = together([found])
    assert alone.equivalent(level) == inside


def test_arms_are_corrected_for_each_other_in_either_claim():
    arms = [estimate(np.array([0.2, 0.3, 0.28]), margin=1.0), estimate(np.array([0.01, -0.02, 0.02]), margin=1.0)]
    both = together(arms)
    assert [one.adjusted for one in both] == holm([one.p for one in arms])
    assert [one.outside_adjusted for one in both] == holm([one.outside_p for one in arms])
