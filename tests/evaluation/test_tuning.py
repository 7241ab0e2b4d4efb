"""`compare.tune`: one value for each arm, by all its seeds, and which images chose and which are measured."""

import json

import pytest

import finished_sweep as finished
from compared import CHEAP, FEW, asked, evaluated
from softgate.evaluation import runs as collection
from softgate.evaluation import tuning

RATE = ["optim.lr"]


def grid(images, root, table, **summary):
    """One run of the arm none for each (rate, seed) and its accuracy."""
    data = finished.options(images)
    return [
        finished.run(root / f"{lr}-{s}", data, "none", s, lr=lr, acc=acc, **summary) for (lr, s), acc in table.items()
    ]


def chosen(*directories, diverged=()):
    """Seed to the chosen rate, and the line on the choice."""
    runs, left = collection.read(directories, "last")
    assert left == []
    failed = tuning.diverged(diverged)
    every = collection.sort([*runs, *failed], [], RATE)
    assert {run.arm for run in every} == {"none"}
    kept, (line,) = tuning.tune(every[: len(runs)], RATE, "val/acc", every[len(runs) :])
    return {run.seed: run.config["optim"]["lr"] for run in kept}, line


def test_all_seeds_of_an_arm_have_the_one_value_with_the_best_mean(images, tmp_path):
    accuracies = {0.05: (0.5, 0.5, 0.5), 0.1: (0.5, 0.6, 0.6), 0.2: (0.9, 0.3, 0.3), 0.4: (0.1, 0.1, 0.1)}
    made = grid(images, tmp_path, {(lr, s): acc for lr, each in accuracies.items() for s, acc in enumerate(each)})
    rates, line = chosen(*made)
    assert rates == {0: 0.1, 1: 0.1, 2: 0.1}
    assert line == (
        "true gradient: optim.lr=0.1 of optim.lr=0.05; optim.lr=0.1; optim.lr=0.2; optim.lr=0.4, "
        "by the mean over seeds 0, 1, 2."
    )


@pytest.mark.parametrize(("best", "side"), [(0.1, "below 0.1"), (0.4, "above 0.4")])
def test_a_best_value_at_the_edge_of_the_grid_is_said(images, tmp_path, best, side):
    table = {(lr, seed): 0.5 + (lr == best) / 10 for lr in (0.1, 0.2, 0.4) for seed in (0, 1)}
    rates, line = chosen(*grid(images, tmp_path, table))
    assert set(rates.values()) == {best}
    assert line.endswith(f"The best is at the edge of the grid: extend the grid, optim.lr {side}.")


def test_seeds_that_tried_one_value_only_do_not_choose_and_are_compared_at_it(images, tmp_path):
    table = {(0.1, 0): 0.6, (0.1, 1): 0.6, (0.2, 0): 0.5, (0.2, 1): 0.5, (0.05, 0): 0.4, (0.05, 1): 0.4}
    fresh = {(0.1, seed): 0.0 for seed in (7, 8)}
    rates, line = chosen(*grid(images, tmp_path, table | fresh))
    assert rates == dict.fromkeys((0, 1, 7, 8), 0.1)
    assert "by the mean over seeds 0, 1." in line
    assert "edge" not in line


def test_a_value_at_which_a_seed_diverged_or_is_missing_is_not_chosen(images, tmp_path):
    table = {(0.1, 0): 0.5, (0.1, 1): 0.5, (0.2, 0): 0.9}
    made = grid(images, tmp_path, table)
    rates, line = chosen(*made)  # only seed 0 tried both
    assert rates == {0: 0.2}
    gone = grid(images, tmp_path, {(0.2, 1): 0.0}, status="diverged")
    rates, line = chosen(*made, diverged=gone)
    assert rates == {0: 0.1, 1: 0.1}
    assert "optim.lr=0.2 was not chosen from: seed 1 diverged." in line
    again = grid(images, tmp_path / "again", {(0.2, 1): 0.8})
    rates, _ = chosen(*made, *again, diverged=gone)  # the one that diverged was run again
    assert rates == {0: 0.2, 1: 0.2}


def test_the_only_value_needs_no_choice_and_no_tuning_changes_nothing(images, tmp_path):
    made = grid(images, tmp_path, {(0.1, 0): 0.5, (0.1, 1): 0.4})
    rates, line = chosen(*made)
    assert rates == {0: 0.1, 1: 0.1}
    assert line == "true gradient: optim.lr=0.1, the only value tried."
    runs, _ = collection.read(made, "last")
    assert tuning.tune(runs, [], "val/acc") == (runs, [])


def sweep(images, root, **data):
    """Two arms, two rates, two seeds."""
    given = finished.options(images, **data)
    for rule, best in (("none", 0.1), ("sugar", 0.2)):
        for lr in (0.1, 0.2):
            for seed in (0, 1):
                finished.run(root / f"{rule}-{lr}-{seed}", given, rule, seed, lr=lr, acc=0.5 + (lr == best) / 10)
    return root


def test_images_that_chose_are_not_called_test_images(images, tmp_path, capsys):
    root = sweep(images, tmp_path / "runs")
    found = evaluated(tmp_path / "out", f"runs={root}", "compare.tune=[optim.lr]", *FEW, *CHEAP)["comparison"]
    assert found["arms"] == ["none", "sugar"]
    assert {run["label"] for run in found["runs"]} == {"none-0.1-0", "none-0.1-1", "sugar-0.2-0", "sugar-0.2-1"}
    page, text = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    warning = "What chose optim.lr is what is measured: the official validation images."
    for said in (page, text, capsys.readouterr().out):
        assert warning in said
        assert "test images" not in said.replace("no test images", "")
    assert "12 validation images, which also chose optim.lr" in page
    assert json.loads((tmp_path / "out" / "results.json").read_text())["comparison"]["tuned"] == found["tuned"]
    assert "extend the grid" in page


def test_images_that_only_measure_are_test_images_and_the_report_says_which_chose(images, tmp_path):
    root = sweep(images, tmp_path / "runs", val_split=0.34)
    found = evaluated(tmp_path / "out", f"runs={root}", "compare.tune=[optim.lr]", *FEW, *CHEAP)["comparison"]
    line = (
        "What chose optim.lr: 0.34 of the training images (data.val_seed=0). "
        "What is measured: the official validation images, by which nothing was chosen."
    )
    assert line in found["notes"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert line in page
    assert "12 test images" in page


def test_which_images_chose_is_what_the_runs_say_and_not_what_the_evaluation_asks_for(images, tmp_path):
    """With data.val_split given to the evaluation alone, the images that it measures are those that chose."""
    root = sweep(images, tmp_path / "runs")
    words = ("compare.tune=[optim.lr]", "+data.val_split=0.34")
    found = evaluated(tmp_path / "out", f"runs={root}", *words, *FEW, *CHEAP)["comparison"]
    assert found["data"]["called"] == "validation images, which also chose optim.lr"


def test_the_best_epoch_is_chosen_too(images, tmp_path):
    (path,) = grid(images, tmp_path, {(0.1, 0): 0.5})
    (run,), _ = collection.read([path], "best")
    options = asked("runs=x", "compare.checkpoint=best").compare
    called, (line,) = tuning.images(options, [run], "the official validation images")
    assert called == "validation images, which also chose the epoch of every run"
    assert line.startswith("What chose the epoch of every run is what is measured")
    assert tuning.images(options, [run], "the test images")[0] == "test images"
    assert tuning.images(asked("runs=x").compare, [run], "the official validation images") == ("test images", [])
