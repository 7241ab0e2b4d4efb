"""The measurement of Hypothesis 1: its runs are those that it says, and its tables say what the rows do."""

import math

import pytest
from hypothesis1_study import report
from hypothesis1_study.measures import swapped
from hypothesis1_study.training import GRID, SPLITS, Setting, measured, network, record, settings, trained_on
from scipy import stats

from softgate import files
from softgate.paths import Recording


def test_a_run_is_recorded_on_both_splits_and_trained_on_as_it_was_trained(tmp_path):
    setting = Setting("cosine", 5, 3)
    record(setting, tmp_path)
    train, val = (Recording(tmp_path / split) for split in ("train", "val"))
    assert [point.epoch for point in train.points] == [*GRID, 5]
    assert train.header.probe != val.header.probe
    last = network(3)
    last.load_state_dict(train.weights(train.points[-1])["net"])
    normal = trained_on(setting, train, train.points[0], "own")
    assert normal == measured(last.eval())  # the same weights, order and rate: the run itself
    losses = {gates: trained_on(setting, train, train.points[0], gates)["train_loss"] for gates in ("epoch", "last")}
    assert len({*losses.values(), normal["train_loss"]}) == 3
    names = {name for _, name, _ in swapped(setting, val)}
    assert {"within: swap", "pooled: same class", "8 patterns: recorded", "2 patterns: mean", "accuracy"} <= names


def test_all_settings_are_asked_for_the_shorter_horizon_first():
    every = settings(2)
    assert len(every) == 8
    assert [(each.epochs, each.seed) for each in every[::2]] == [(5, 0), (5, 1), (10, 0), (10, 1)]
    assert {each.schedule for each in every} == {"cosine", "constant"}
    assert every[4].grid == tuple(2 * s for s in GRID)


def test_tables_have_students_intervals_over_seeds_and_pair_the_seeds(tmp_path):
    columns = ("schedule", "epochs", "seed", "s", "gates", "val_accuracy")
    own, given = [0.9, 0.8, 0.85], [0.88, 0.79, 0.85]
    rows = [("cosine", 5, seed, 0.0, "own", value) for seed, value in enumerate(own)]
    rows += [("cosine", 5, seed, 0.0, "epoch", value) for seed, value in enumerate(given)]
    files.write_csv([dict(zip(columns, row, strict=True)) for row in rows], tmp_path / "frozen.csv", columns)
    (table,) = report.frozen(tmp_path / "frozen.csv")
    cells = {row[0]: row[1] for row in table.rows}
    assert cells["frozen at s - own"].startswith("-0.01 [-0.03, ")
    assert cells["random, frozen"] == ""
    mean, low, high = report.interval(own)
    expected = stats.t.interval(0.95, 2, mean, stats.sem(own))
    assert (low, high) == pytest.approx(expected)
    assert report.interval([0.5]) == (0.5, -math.inf, math.inf)
    assert report.figure(tmp_path / "frozen.csv", None).width > 100


def test_the_margin_is_over_the_greatest_control_of_each_seed(tmp_path):
    columns = ("schedule", "epochs", "seed", "split", "s", "measure", "value")
    measures = {"within: swap": (0.9, 0.8), "within: mean": (0.2, 0.7), "within: f(s)": (0.5, 0.1)}
    rows = [
        dict(zip(columns, ("cosine", 5, seed, "val", 1.0, name, value), strict=True))
        for name, values in measures.items()
        for seed, value in enumerate(values)
    ]
    files.write_csv(rows, tmp_path / "swaps.csv", columns)
    (table,) = report.swaps(tmp_path / "swaps.csv", SPLITS[0])
    assert table.rows[-1][0] == "within: swap - greatest control"
    assert table.rows[-1][1].startswith("+0.25")  # of +0.4 and +0.1
