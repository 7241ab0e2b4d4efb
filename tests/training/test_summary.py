"""What a run writes about itself: summary.json, config.yaml, and JSON files in general."""

import json
import re

import torch
import yaml

from softgate import files
from softgate.training import summary as report


def test_summary_names_the_first_best_epoch():
    points = {"val/acc": [(0.0, 0.5), (1.0, 0.9), (2.0, 0.9), (3.0, 0.7)], "train/loss_step": [(0.0, 1.0)]}
    assert report.summarize(points) == {"val/acc": 0.7, "best/epoch": 1, "best/val/acc": 0.9}


def test_a_number_that_is_none_is_null_in_json(tmp_path):
    files.write_json({"a": float("nan"), "b": float("inf"), "c": 0.5}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=None) == {"a": None, "b": None, "c": 0.5}


def test_the_summary_says_when_and_with_what_a_run_was_made(run):
    summary = json.loads((run / "summary.json").read_text())
    made = summary["environment"]
    assert made["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert made["devices"] == 1
    assert made["hardware"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", summary["started"])


def test_nothing_nested_is_written_that_json_cannot_hold(tmp_path):
    files.write_json({"a": [float("nan"), {"b": float("inf")}, (1.0, None)]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, {"b": None}, [1.0, None]]}


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    files.write_json({"a": 1}, path)
    files.write_json({"a": 2}, path)
    assert json.loads(path.read_text()) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_saved_config_is_complete_and_resolved(run):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["name"] == "digits-resnet18-excitation"
    assert saved["surrogate"]["gate"] == {"name": "sigmoid", "temperature": 0.3}
    assert "${" not in (run / "config.yaml").read_text()


def test_curves_count_epochs_from_one_mark_the_best_and_have_only_panels_with_points():
    points = {"train/loss": [(0, 2.0), (1, 1.0), (2, 0.5)], "val/acc": [(0, 0.2), (1, 1.0), (2, 0.9)], "lr": [(0, 0.1)]}
    points["gradient_norm"] = [(0, 3.0), (1, 2.0), (2, 2.5)]
    points |= {f"align/soft/noise_cosine{end}": [(0, 0.9), (1, 0.95)] for end in ("", "_low", "_high")}
    chart = report.curves(points, "a run")
    axes = {each.get_title(): each for each in chart.figure.axes}
    assert list(axes) == ["loss", "accuracy", "learning rate", "gradient norm", "noise cosine ↑"]
    assert list(axes["loss"].lines[0].get_xdata()) == [1, 2, 3]
    assert list(axes["accuracy"].lines[-1].get_xdata()) == [2, 2]  # the best epoch
    assert axes["accuracy"].get_ylim()[1] == 1
    assert report.curves({}, "nothing") is None
