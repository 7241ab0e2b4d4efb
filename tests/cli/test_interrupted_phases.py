"""A signal in each phase of a run and of an evaluation: what is kept, and the line that says so."""

import json
import signal
from pathlib import Path

import pytest
import torch

import finished_sweep as finished
from compared import CHEAP, FEW
from configs import TINY, composed
from softgate import files
from softgate.cli import exits, stops
from softgate.data import ImageData
from softgate.evaluation import alignment
from softgate.evaluation.evaluate import evaluate
from softgate.evaluation.generalization.measures import Bench
from softgate.evaluation.reports import comparison
from softgate.evaluation.reports import results as results_file
from softgate.training import SoftgateModule, summary
from softgate.training.train import train

QUICK = (*TINY, "model=squeezenet1_1", "data.size=32", "callbacks.grids.every_n_epochs=0")


def interrupting(monkeypatch, owner: object, name: str, *numbers: int, call: int = 1) -> None:
    """Sends signals in a call of a function."""
    made, calls = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            for number in numbers:
                signal.raise_signal(number)
        return made(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)


def ended(script: str, directory: Path, capfd, monkeypatch, *words: str) -> tuple[int, list[str]]:
    """The exit status of a command, and the lines that say what is kept."""
    monkeypatch.setattr(stops, "current", stops.Command(script))
    stops.current.directory = directory
    function, name = {"train": (train, "train"), "evaluate": (evaluate, "evaluate")}[script]
    try:
        exits.job(function, composed(*words, name=name, directory=directory))
    except SystemExit as end:
        status = int(end.code)
    else:
        status = 0
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert not list(directory.rglob("*.partial"))
    return status, [line for line in err.splitlines() if line.startswith("stopped by ")]


# -- a run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "call", "step", "number"),
    [
        pytest.param(ImageData, "setup", 1, None, signal.SIGINT, id="decoding"),
        pytest.param(SoftgateModule, "configure_optimizers", 1, None, signal.SIGTERM, id="fitting begins"),
        pytest.param(SoftgateModule, "validation_step", 1, None, signal.SIGTERM, id="trial of a validation"),
        pytest.param(SoftgateModule, "on_train_epoch_start", 2, 4, signal.SIGINT, id="an epoch begins"),
        pytest.param(SoftgateModule, "validation_step", 3, 3, signal.SIGTERM, id="validation"),
        pytest.param(torch, "save", 1, 3, signal.SIGINT, id="first checkpoint"),
        pytest.param(torch, "save", 3, 6, signal.SIGTERM, id="last checkpoint"),
    ],
)
def test_a_run_keeps_its_last_checkpoint(tmp_path, capfd, monkeypatch, owner, name, call, step, number):
    with monkeypatch.context() as patch:
        interrupting(patch, owner, name, number, call=call)
        status, lines = ended("train", tmp_path, capfd, monkeypatch, *QUICK)
    assert status == 128 + number
    (line,) = lines
    last = tmp_path / "checkpoints" / "last.ckpt"
    if step is None:
        assert "no checkpoint" in line
        assert not last.exists()
    else:
        assert (f"last.ckpt, step {step}; " in line) or ("the run is finished" in line)
        assert torch.load(last, weights_only=True)["global_step"] == step
    assert ended("train", tmp_path, capfd, monkeypatch, *QUICK, "resume=true") == (0, [])
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
    assert torch.load(last, weights_only=True)["global_step"] == 6


def test_a_second_ctrl_c_stops_at_once_and_the_checkpoint_that_was_being_written_is_the_former(
    tmp_path, capfd, monkeypatch
):
    with monkeypatch.context() as patch:
        interrupting(patch, torch, "save", signal.SIGTERM, signal.SIGTERM, signal.SIGINT, call=3)
        status, (line,) = ended("train", tmp_path, capfd, monkeypatch, *QUICK)
    assert status == 143
    assert "kept " in line
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert ended("train", tmp_path, capfd, monkeypatch, *QUICK, "resume=true") == (0, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_without_checkpoints_ends_with_the_signals_status_too(tmp_path, capfd, monkeypatch, number):
    interrupting(monkeypatch, SoftgateModule, "training_step", number, call=2)
    words = (*QUICK, "trainer.enable_checkpointing=false")
    status, lines = ended("train", tmp_path, capfd, monkeypatch, *words)
    assert status == 128 + number
    assert "no checkpoint" in lines[0]


def test_a_summary_that_is_being_written_is_written(tmp_path, capfd, monkeypatch):
    interrupting(monkeypatch, summary, "save_curves", signal.SIGTERM)
    status, lines = ended("train", tmp_path, capfd, monkeypatch, *QUICK)
    assert status == 143
    assert lines == [f"stopped by SIGTERM: the run is finished, in {tmp_path}."]
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "curves.png").is_file()


# -- an evaluation -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("interrupted")
    data = finished.options(finished.images(root / "images"))
    return finished.sweep(root / "runs", data, arms=("none", "excitation"), seeds=(0, 1))


def test_an_evaluation_keeps_the_runs_that_are_measured(runs, tmp_path, capfd, monkeypatch):
    words = (f"runs=[{runs}/none-0,{runs}/none-1]", "compare=none", *FEW[:3])
    with monkeypatch.context() as patch:
        interrupting(patch, torch.nn.functional, "cross_entropy", signal.SIGTERM, call=4)  # of the second run
        status, (line,) = ended("evaluate", tmp_path, capfd, monkeypatch, *words)
    assert status == 143
    kept = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(kept) == 1
    assert f"1 of 2 are measured, see {tmp_path / 'results.json'}; " in line
    assert f"runs='[{runs}/none-1/checkpoints/best.ckpt]' measures the others" in line
    rest = f"runs=[{runs}/none-1/checkpoints/best.ckpt]"
    assert ended("evaluate", tmp_path / "rest", capfd, monkeypatch, rest, *words[1:]) == (0, [])
    whole = json.loads((tmp_path / "rest" / "results.json").read_text())["runs"]
    assert ended("evaluate", tmp_path / "whole", capfd, monkeypatch, *words) == (0, [])
    assert [*kept, *whole] == json.loads((tmp_path / "whole" / "results.json").read_text())["runs"]


def test_networks_that_are_measured_are_kept_too(runs, tmp_path, capfd, monkeypatch):
    words = ["models=[squeezenet1_1,squeezenet1_0]", "model=squeezenet1_1", "model.weights=null", "data=folder"]
    words += [f"data.root={runs.parent / 'images'}", "data.size=32", "data.batch_size=8", *FEW[:3]]
    from softgate.evaluation import evaluate as module

    interrupting(monkeypatch, module, "measure_among", signal.SIGTERM, call=2)
    status, (line,) = ended("evaluate", tmp_path, capfd, monkeypatch, *words)
    assert status == 143
    assert "1 of 2 are measured" in line
    assert "models='[squeezenet1_0]' measures the others" in line or "models=[squeezenet1_0]" in line
    assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) == 1


@pytest.mark.slow
def test_the_alignment_of_runs_that_are_measured_is_kept(runs, tmp_path, capfd, monkeypatch):
    interrupting(monkeypatch, alignment.Study, "look", signal.SIGINT, call=2)
    asked = ("alignment=full", "alignment.images=4", "alignment.dear_images=2", "alignment.draws=2", "measure=false")
    words = (f"runs=[{runs}/none-0,{runs}/none-1]", *asked, *FEW[:3])
    status, (line,) = ended("evaluate", tmp_path, capfd, monkeypatch, *words)
    assert status == 130
    assert "1 of 2 are measured" in line
    assert len(json.loads((tmp_path / "results.json").read_text())["alignment"]["networks"]) == 1
    assert (tmp_path / "alignment.csv").is_file()


def test_a_signal_before_anything_is_measured_says_so(runs, tmp_path, capfd, monkeypatch):
    interrupting(monkeypatch, ImageData, "setup", signal.SIGINT)
    status, (line,) = ended("evaluate", tmp_path, capfd, monkeypatch, f"runs={runs}/none-0", *FEW[:3])
    assert (status, line) == (
        130,
        f"stopped by Ctrl-C: no results are in {tmp_path} yet; the same command begins anew.",
    )


def test_a_comparison_keeps_the_measures_of_each_run(runs, tmp_path, capfd, monkeypatch):
    interrupting(monkeypatch, Bench, "measure", signal.SIGTERM, call=3)
    status, (line,) = ended("evaluate", tmp_path, capfd, monkeypatch, f"runs={runs}/*", *FEW, *CHEAP)
    assert status == 143
    assert f"measures of 2 runs are in {tmp_path / 'runs.csv'}; the same command begins anew" in line
    assert len(files.read_csv(tmp_path / "runs.csv")) == 2


@pytest.mark.parametrize("numbers", [[signal.SIGTERM, signal.SIGTERM], [signal.SIGINT] * 2])
def test_a_report_that_is_being_written_is_written_unless_ctrl_c_comes_again(
    runs, tmp_path, capfd, monkeypatch, numbers
):
    interrupting(monkeypatch, comparison, "page", *numbers)
    status, (line,) = ended("evaluate", tmp_path, capfd, monkeypatch, f"runs={runs}/*", *FEW, *CHEAP)
    assert status == 128 + numbers[0]
    assert f"the results are in {tmp_path}" in line
    assert (tmp_path / "report.tex").is_file() == (numbers != [signal.SIGINT] * 2)
    assert json.loads((tmp_path / "results.json").read_text())["comparison"]["schema"] == results_file.SCHEMA
