"""What a comparison's sentences and bands may say."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from compared import asked
from softgate.evaluation import checkpoints, compare
from softgate.evaluation import runs as collection
from softgate.evaluation.generalization.measures import Measured
from softgate.evaluation.generalization.planning import Between
from softgate.evaluation.generalization.statistics import Difference
from softgate.evaluation.reports import sentences
from softgate.figures import comparison as charts


def comparison(a, b, *words):
    """Two arms with the given scores by seed and image."""
    options = asked("compare.curves=[noise_cosine]", "compare.within=[]", *words).compare
    made = []
    for arm, rows in (("none", b), ("soft", a)):
        for seed, row in enumerate(rows):
            each = Measured()
            each.add("acc", torch.tensor(row))
            made.append((collection.Run(None, f"{arm}-{seed}", {"seed": seed}, {}, {}, {}, [], [], arm=arm), each))
    found = compare.Comparison([run for run, _ in made], "none", options)
    found.measured = [each for _, each in made]
    found.rows = compare.differences(found)
    return found


def test_only_an_arm_that_is_told_apart_is_called_better():
    generator = np.random.default_rng(0)
    base = (generator.random((6, 300)) < 0.8).astype(float)
    clear = comparison(np.maximum(base, generator.random((6, 300)) < 0.4), base)
    assert clear.rows[0].verdict == "better"
    (sentence,) = sentences.claims(clear)
    assert sentence.startswith("soft is better than none: +")
    assert sentence.endswith(f"6 seeds, {sentences.probability(clear.rows[0].difference.adjusted)}.")
    same = comparison((generator.random((6, 300)) < 0.8).astype(float), base)
    assert same.rows[0].verdict == "not told apart"
    (sentence,) = sentences.claims(same)
    assert sentence.startswith("soft is not told apart from none: ")
    assert re.search(
        r"Nor is it shown to be equivalent: the 90% interval, -\d\.\d\d pp to \+\d\.\d\d pp, is not within ±1 pp\. "
        r"6 seeds find a true difference of \d+\.\d\d pp \(\d\.\d\d pp to \d+\.\d\d pp\) four times in five; "
        r"for 0\.5, 1 and 2 pp it takes .+, .+ and .+ seeds\.$",
        sentence,
    )
    alone = comparison(base[:1], 1 - base[:1])
    assert sentences.claims(alone)[0].endswith("One seed makes no claim.")


def test_a_null_is_claimed_by_equivalence_and_not_by_a_large_p():
    generator = np.random.default_rng(1)
    base = (generator.random((6, 4000)) < 0.8).astype(float)
    other = np.where(generator.random((6, 4000)) < 0.05, generator.random((6, 4000)) < 0.8, base)
    alike = comparison(other, base)
    (row,) = alike.rows
    assert row.verdict == "equivalent"
    (sentence,) = sentences.claims(alike)
    assert re.match(
        r"soft is equivalent to none within ±1 pp: [+-]0\.\d\d pp \(95%: .*\), 6 seeds, Holm p = ", sentence
    )
    assert re.search(r"The 90% interval, .*, lies within ±1 pp \(Holm p < 0.001 of a difference as large\)\.", sentence)
    narrow = comparison(other, base, "compare.equivalence=0.01")
    assert narrow.rows[0].verdict == "not told apart"
    assert "is not within ±0.01 pp." in sentences.claims(narrow)[0]
    unasked = comparison(other, base, "compare.equivalence=null")
    assert "equivalent" not in sentences.claims(unasked)[0]


def test_what_is_told_apart_may_still_be_too_small_to_matter_and_holm_may_forbid_equivalence():
    found = comparison(np.zeros((3, 10)), np.zeros((3, 10)))
    one = Difference(
        0.004, 0.001, 0.007, 0.01, 0.1, (), None, 0.02, margin=0.01, inner=(0.002, 0.006), outside_adjusted=0.003
    )
    row = compare.Row("soft", "", "acc", (0, 1, 2), one, one.verdict(True))
    assert sentences.claim(row, found) == (
        "soft is better than none: +0.40 pp (95%: +0.10 pp to +0.70 pp), 3 seeds, Holm p = 0.02. Yet a difference that "
        "matters is ruled out: the 90% interval, +0.20 pp to +0.60 pp, lies within ±1 pp (Holm p = 0.003 of a "
        "difference as large)."
    )
    less = replace(one, adjusted=0.3, outside_adjusted=0.08)
    row = compare.Row("soft", "", "acc", (0, 1, 2), less, less.verdict(True))
    assert row.verdict == "not told apart"
    assert "lies within ±1 pp, but Holm p = 0.08 of a difference as large." in sentences.claim(row, found)


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ((17, 6, 4600), "17 (6 to 4,600)"),
        ((1700, 600, None), "1,700 (600 or more)"),
        ((None, 41, None), "no number (41 or more)"),
        ((None, None, None), "no number"),
    ],
)
def test_numbers_of_seeds_are_said_with_their_doubt(figure, said):
    assert sentences.needed(Between(*figure)) == said


def test_bands_are_t_intervals_over_seeds():
    line = sentences.band([[(0, 1.0), (1, 2.0)], [(0, 3.0), (1, 2.0)], [(0, 2.0)]])
    assert line.points == [(0, 2.0)]
    assert line.high[0][1] - 2 == pytest.approx(4.302653 * 1 / math.sqrt(3), rel=1e-5)
    assert sentences.band([[(0, 1.0)]]).low == ()
    assert sentences.band([[], []]).points == ()


def test_bands_on_log_scales_are_those_of_the_logarithms_and_stay_above_zero():
    histories = [[(0, 1.0)], [(0, 1000.0)]]
    line = sentences.band(histories, log=True)
    assert line.points[0][1] == pytest.approx(math.sqrt(1000))
    assert line.low[0][1] > 0 > sentences.band(histories).low[0][1]
    assert line.high[0][1] * line.low[0][1] == pytest.approx(1000)  # symmetric about the mean there
    assert charts.steep([1.0, 1000.0])
    assert not charts.steep([1.0, 10.0])
    assert not charts.steep([0.0, 1000.0])
    assert not charts.steep([])


def test_job_2_of_a_sweep_stands_before_job_10(tmp_path):
    for number in (10, 2, 0):
        (tmp_path / f"{number}-digits").mkdir()
        (tmp_path / f"{number}-digits" / "config.yaml").write_text("trainer: {max_epochs: 1}")
    expected = [tmp_path / f"{number}-digits" for number in (0, 2, 10)]
    assert checkpoints.directories(str(tmp_path)) == checkpoints.directories(f"{tmp_path}/*") == expected


def test_a_correlation_within_arms_is_not_feigned_by_arms():
    groups = {"a": [(0.0, 1.0), (1.0, 0.0)], "b": [(10.0, 11.0), (11.0, 10.0)]}
    assert sentences.correlation(groups) == "Spearman over all 4 runs 0.60, within arms -1.00."
    single = {"a": [(0.1, 50)], "b": [(0.2, 60)], "c": [(0.3, 70)]}
    assert sentences.correlation(single) == "Spearman over all 3 runs 1.00, within arms –."
