"""What `softgate app` makes of its words before anything is composed."""

import os
import sys
from pathlib import Path

import pytest

from softgate.cli import app


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Runs the command up to Hydra; returns the words that Hydra would read, and the command that trains."""
    trains = []

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["softgate"])
        monkeypatch.setattr(app.command, "run", lambda main, configs, name: None)
        monkeypatch.setattr(app, "offered", lambda configs: trains.append(configs) or ["train"])
        app.run(list(words), Path("conf"))
        return sys.argv[1:], len(trains)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is put back
    monkeypatch.delenv("OMP_WAIT_POLICY")
    return run


def test_where_there_is_no_run_one_is_offered_and_later_ones_are_found(ran):
    assert ran() == (["runs=outputs/**"], 1)
    assert ran("app.port=1") == (["app.port=1", "runs=outputs/**"], 2)


def test_the_newest_run_is_meant_where_there_is_one(ran, tmp_path):
    place = tmp_path / "outputs" / "day" / "time"
    (place / ".hydra").mkdir(parents=True)
    (place / ".hydra" / "overrides.yaml").touch()
    (place / "config.yaml").touch()
    assert ran("app.port=1") == (["app.port=1", "runs=latest"], 0)


@pytest.mark.parametrize("word", ["runs=mine/**", "model=resnet50", "--help"])
def test_who_names_something_is_offered_nothing(ran, word):
    assert ran(word) == ([word], 0)


def test_threads_do_not_spin_unless_told_to(ran, monkeypatch):
    ran()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    ran()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
