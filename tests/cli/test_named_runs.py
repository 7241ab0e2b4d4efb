"""Runs by their path alone, and the latest one."""

import os
from pathlib import Path

import pytest

from softgate.cli.named_runs import named, newest
from softgate.errors import SoftgateError
from softgate.quoting import quoted


def run(directory: Path, begun: float) -> Path:
    (directory / ".hydra").mkdir(parents=True)
    (directory / "config.yaml").touch()
    (directory / ".hydra" / "overrides.yaml").touch()
    os.utime(directory / ".hydra" / "overrides.yaml", (begun, begun))
    return directory


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_paths_stand_for_runs(here):
    one, two = run(Path("a, b"), 1), run(Path("c"), 1)
    assert named(["a, b"], "evaluate") == [f"runs={quoted(one)}"]
    assert named(["grid.rows=2", "a, b", "c"], "evaluate") == ["grid.rows=2", f"runs=[{quoted(one)},{quoted(two)}]"]
    assert named(["c", "trainer.max_epochs=9"], "train") == ["trainer.max_epochs=9", f"resume={quoted(two)}"]


def test_the_latest_is_the_run_that_was_begun_last(here, capsys):
    old, new = run(Path("outputs/2026-01-01/10-00-00-x"), 10), run(Path("outputs/2026-01-01/09-00-00-x"), 20)
    run(Path("outputs/evaluations/2026-01-02/10-00-00"), 99)  # none of train.py's, deeper than a run
    for words, command in ((["latest"], "train"), (["resume=latest"], "train"), (['runs="latest"'], "evaluate")):
        option = {"train": "resume", "evaluate": "runs"}[command]
        assert named(words, command) == [f"{option}={quoted(new)}"]
        assert str(new) in capsys.readouterr().err
    job = run(Path("outputs/sweeps/2026-01-01/08-00-00/0"), 30)
    assert newest(Path("outputs"), sweeps=True) == job.parent
    assert newest(Path("outputs"), sweeps=False) == new != old


def test_what_is_no_run_stays_as_it_is(here):
    Path("conf").mkdir()
    for words in (["--config-dir", "conf"], ["--cfg", "job"], ["~metrics"], ["optim.lr=.1"], ["nowhere/at/all"]):
        assert named(words, "train") == words
    Path("latest").mkdir()
    assert named(["latest"], "evaluate") == ['runs="latest"']
    assert named(["x" * 300], "train") == ["x" * 300]


def test_a_latest_run_is_asked_for_and_there_is_none(here):
    with pytest.raises(SoftgateError, match=r"resume=latest: there is no run under .*outputs"):
        named(["resume=latest"], "train")


def test_a_run_is_named_once(here):
    run(Path("a"), 1)
    with pytest.raises(SoftgateError, match="it stands for runs=a, and runs=b is given too"):
        named(["a", "runs=b"], "evaluate")
