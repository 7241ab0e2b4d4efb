"""What a comparison's sentences and bands may say."""

import math
import re

import numpy as np
import pytest
import torch

from compared import asked
from softgate.evaluation import checkpoints, compare
from softgate.evaluation import runs as collection
from softgate.evaluation.generalization.measures import Measured
from softgate.evaluation.reports import sentences
from softgate.figures import comparison as charts


def comparison(a, b, key="acc", baseline="none"):
    """Two arms with the given scores by seed and image."""
    options = asked("compare.resamples=300", "compare.curves=[noise_cosine]", "compare.within=[]").compare
    made = []
    for arm, rows in (("none", b), ("soft", a)):
        for seed, row in enumerate(rows):
            each = Measured()
            each.add("acc", torch.tensor(row))
            made.append((collection.Run(None, f"{arm}-{seed}", {"seed": seed}, {}, {}, {}, [], [], arm=arm), each))
    found = compare.Comparison([run for run, _ in made], baseline, options)
    found.measured = [each for _, each in made]
    found.rows = compare.differences(found)
    return found


def test_only_an_arm_that_is_told_apart_is_called_better():
    generator = np.random.default_rng(0)
    base = (generator.random((6, 300)) < 0.8).astype(float)
    clear = comparison(np.maximum(base, generator.random((6, 300)) < 0.4), base)
    assert clear.rows[0].verdict == "better"
    assert sentences.claims(clear)[0].startswith("soft is better than none: +")
    same = comparison((generator.random((6, 300)) < 0.8).astype(float), base)
    assert same.rows[0].verdict == "not told apart"
    (sentence,) = sentences.claims(same)
    assert sentence.startswith("soft is not told apart from none: ")
    assert re.search(r"6 seeds find a difference of \d+\.\d\d pp four times in five; (one|on these)", sentence)
    alone = comparison(base[:1], 1 - base[:1])
    assert sentences.claims(alone)[0].endswith("One seed makes no claim.")


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
