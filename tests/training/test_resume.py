"""Runs that survive: killed at any moment, stopped, moved, damaged; they end as if nothing had happened."""

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from configs import CONF, TINY, composed
from runs_alike import assert_alike, rows
from softgate import SoftgateError, files
from softgate.errors import Stopped
from softgate.training import SoftgateModule, resume
from softgate.training.callbacks.last import STATE, LastCheckpoint
from softgate.training.metricsfile import MetricsFile, keep
from softgate.training.train import train

SMALL = ("model=squeezenet1_1", "data.size=32", "data.batch_size=8", "trainer.log_every_n_steps=1")
EVERYTHING = (
    *SMALL,
    *("surrogate.scale=channel", "schedule=anneal", "readout.scale=channel", "ema=0.9", "optim.mixup=0.2"),
    *("callbacks.grids.classes=2", "callbacks.diagnostics.images=4", "callbacks.checkpoint.every_n_steps=2"),
    *("trainer.max_epochs=2", "trainer.limit_train_batches=5", "trainer.limit_val_batches=2"),
)


def kill(folder: Path, kills: int, seed: int, *words: str) -> list[dict[str, Any]]:
    line = [
        sys.executable,
        str(Path(__file__).parents[1] / "kill_and_resume.py"),
        str(folder),
        str(kills),
        str(seed),
        *words,
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    logs = "".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    return json.loads((folder / "kills.json").read_text())["kills"]


def assert_all_alike(folder: Path) -> None:
    runs = sorted(path for path in folder.glob("killed*") if path.is_dir())
    assert runs
    for run in runs:
        assert_alike(folder / "whole", run)


@pytest.mark.slow
def test_a_run_killed_three_times_ends_as_if_nothing_had_happened(tmp_path):
    kills = kill(tmp_path, 3, 0, *EVERYTHING)
    assert len(kills) == 3
    assert_all_alike(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_a_run_killed_at_twenty_random_moments_ends_as_if_nothing_had_happened(tmp_path, seed):
    kills = kill(tmp_path, 20, seed, *EVERYTHING, "trainer.max_epochs=12")
    print(json.dumps(kills))
    assert len(kills) == 20
    assert_all_alike(tmp_path)


# -- one process: stopped, finished, lengthened, moved ------------------------------------------------------

QUICK = (*TINY, "callbacks=none", "model=squeezenet1_1", "data.size=32", "trainer.limit_val_batches=1")


def stopping(monkeypatch, step: int, number: int) -> None:
    """Sends this process a signal when a training step begins."""

    def stopped(self: SoftgateModule, batch: Any, index: int) -> Tensor:
        if self.global_step == step:
            signal.raise_signal(number)
        return original(self, batch, index)

    original = SoftgateModule.training_step
    monkeypatch.setattr(SoftgateModule, "training_step", stopped)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    train(composed(*QUICK, directory=directory))
    return directory


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_ends_its_step_and_goes_on_bit_for_bit(finished, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        stopping(patch, 4, number)
        with pytest.raises(Stopped) as ended:
            train(composed(*QUICK, directory=tmp_path))
    assert ended.value.signal == number
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "interrupted"
    begun = time.perf_counter()
    train(composed(*QUICK, "resume=true", directory=tmp_path))
    seconds = time.perf_counter() - begun
    assert_alike(finished, tmp_path)
    # The clock of the epoch that went on starts with the process, not with the machine.
    speeds = [row["train/images_per_second"] for row in files.read_csv(tmp_path / "metrics.csv")]
    assert all(float(speed) * seconds > 1 for speed in speeds if speed)


def test_a_run_that_goes_on_has_no_summary_until_it_ends(tmp_path):
    files.write_json({"status": "interrupted"}, tmp_path / "summary.json")
    resume.begin("seed: 0\n", tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"
    resume.begin("seed: 1\n", tmp_path)  # nor does it need one
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_the_seconds_of_earlier_parts_of_a_run_count(tmp_path):
    last = LastCheckpoint(tmp_path / "last.ckpt")
    kept: dict[str, Any] = {}
    last.on_load_checkpoint(SimpleNamespace(is_global_zero=False), None, {STATE: {"seconds": 1e4, "pending": {}}})
    last.on_save_checkpoint(SimpleNamespace(loggers=[]), None, kept)
    assert 1e4 < kept[STATE]["seconds"] <= last.seconds < 1e4 + 100


def test_gradients_that_are_being_summed_are_not_cut_off(tmp_path, monkeypatch):
    words = (*QUICK, "trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=7", "trainer.max_epochs=1")
    train(composed(*words, directory=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stopping(patch, 1, signal.SIGINT)
        with pytest.raises(Stopped):
            train(composed(*words, directory=tmp_path / "stopped"))
    train(composed(*words, "resume=true", directory=tmp_path / "stopped"))
    assert_alike(tmp_path / "whole", tmp_path / "stopped")


def test_a_finished_run_says_so_and_a_longer_one_goes_on_from_it(finished, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(finished, run)  # it may be moved, too
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr("softgate.training.build.data", None)
        summary = train(composed(*QUICK, "resume=true", directory=run))
    assert "is finished already" in " ".join(capsys.readouterr().out.split())
    assert summary == json.loads((run / "summary.json").read_text())
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    train(composed(*QUICK, "resume=true", "trainer.max_epochs=3", directory=run))
    epochs = [row["epoch"] for row in files.read_csv(run / "metrics.csv") if row["train/loss"]]
    assert epochs == ["0", "1", "2"]
    assert rows(run / "metrics.csv")[:4] == rows(finished / "metrics.csv")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    best = next(value for key, value in state["callbacks"].items() if key.startswith("BestCheckpoint"))
    assert best["best_model_path"] == str(run / "checkpoints" / "best.ckpt")
    assert best["best_model_score"] is not None


def test_a_run_killed_after_its_last_epoch_still_gets_its_film_and_summary(tmp_path):
    words = (*TINY, "callbacks.diagnostics.every_n_epochs=0", "model=squeezenet1_1", "data.size=32")
    train(composed(*words, directory=tmp_path))
    film = (tmp_path / "grids" / "film.png").read_bytes()
    grids = {path: path.read_bytes() for path in tmp_path.glob("grids/epoch*.png")}
    for name in ("summary.json", "curves.png", "grids/film.png", "grids/film.gif"):
        (tmp_path / name).unlink()
    train(composed(*words, "resume=true", directory=tmp_path))
    assert (tmp_path / "grids" / "film.png").read_bytes() == film
    assert {path: path.read_bytes() for path in tmp_path.glob("grids/epoch*.png")} == grids
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "curves.png").is_file()


def test_the_wandb_run_is_gone_on_with_under_its_id(tmp_path, monkeypatch):
    from wandb_file import read_run

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = (*QUICK, "logger=[wandb,tensorboard]", "trainer.limit_train_batches=2")
    with monkeypatch.context() as patch:
        stopping(patch, 2, signal.SIGINT)
        with pytest.raises(Stopped):
            train(composed(*words, directory=tmp_path))
    train(composed(*words, "resume=true", directory=tmp_path))
    ids = [r.run.run_id for f in tmp_path.glob("wandb/offline-run-*/*.wandb") for r in read_run(f) if r.run.run_id]
    assert len(ids) >= 2
    assert set(ids) == {(tmp_path / "wandb-id").read_text().strip()}


# -- what is refused ----------------------------------------------------------------------------------------


def refused(run: Path, *words: str) -> str:
    with pytest.raises(SoftgateError) as error:
        train(composed(*QUICK, "trainer.max_epochs=3", "resume=true", *words, directory=run))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_directory_of_another_config_is_refused_with_the_keys_that_differ(run):
    said = refused(run, "seed=1", "optim.lr=0.5", "callbacks.guard.every_n_steps=7", "data.num_workers=2")
    assert "different: optim.lr (0.05 there, 0.5 here), seed (0 there, 1 here)." in said
    assert "surrogate.gate.name (sigmoid there, bsilu here)" in refused(run, "surrogate=sugar")
    assert "and 1 more" in refused(
        run, *(f"optim.{key}=0.01" for key in ("lr", "warmup", "mixup", "cutmix", "momentum"))
    )


def test_a_directory_that_holds_a_run_is_not_trained_into_anew(run):
    with pytest.raises(SoftgateError, match=r"there is a run in it; resume=.*run goes on with it"):
        train(composed(*QUICK, directory=run))
    with pytest.raises(SoftgateError, match="there is a run in it"):
        resume.complete(["seed=1", f"hydra.run.dir='{run}'"], several=False, configs=CONF)


def test_a_checkpoint_that_is_cut_short_is_refused(run):
    last = run / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    for length in (0, 1000, len(whole) // 2, len(whole) - 100):
        last.write_bytes(whole[:length])
        assert "last.ckpt: not a checkpoint of plain data, or cut short" in refused(run)


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('evil').touch()",)


def test_a_checkpoint_that_names_code_to_run_is_refused_and_does_not_run_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = run / "checkpoints" / "last.ckpt"
    found = torch.load(last, weights_only=True)
    torch.save(found | {"callbacks": Evil()}, last)
    assert re.search(r"last.ckpt: it names code to run, (builtins\.)?exec, which is not run", refused(run))
    last.write_bytes(pickle.dumps(Evil()))
    assert "last.ckpt: not a checkpoint of plain data" in refused(run)
    (run / "config.yaml").write_text("a: [")
    assert refused(run).endswith("its config.yaml is damaged.")
    assert not (tmp_path / "evil").exists()


def test_a_checkpoint_of_another_run_or_program_is_refused(run):
    last = run / "checkpoints" / "last.ckpt"
    found = torch.load(last, weights_only=True)
    torch.save(found["state_dict"], last)
    assert "not a checkpoint that softgate wrote" in refused(run)
    torch.save([1, 2], last)
    assert "it holds a list" in refused(run)
    torch.save({**found, "hyper_parameters": {**found["hyper_parameters"], "channels_last": False}}, last)
    assert "it is of another run; different: channels_last (False there, True here)." in refused(run)
    torch.save({key: value for key, value in found.items() if key != "loops"}, last)
    assert "it lacks loops" in refused(run)
    torch.save({**found, "state_dict": {"net.a": torch.zeros(3)}}, last)
    assert "its weights are not those of this network" in refused(run)


def test_a_checkpoint_without_its_config_is_refused(run):
    (run / "config.yaml").unlink()
    assert "and no config.yaml" in refused(run)


# -- the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def began(tmp_path) -> Path:
    files.write(
        "- data=imagenette\n- optim.lr=0.3\n- +trainer.min_epochs=1\n- resume=false\n",
        made(tmp_path / "o" / ".hydra" / "overrides.yaml"),
    )
    made(tmp_path / "o" / "checkpoints" / "last.ckpt").touch()
    return tmp_path / "o"


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_command_is_completed_with_what_the_run_began_with(began, monkeypatch):
    monkeypatch.chdir(began.parent)
    end = ["resume=true", 'hydra.run.dir="o"', "hydra.output_subdir=null"]
    assert resume.complete(["resume=o"], False, CONF) == [
        "data=imagenette",
        "optim.lr=0.3",
        "+trainer.min_epochs=1",
        *end,
    ]
    assert resume.complete(["resume='o/checkpoints/last.ckpt'"], False, CONF)[-3:] == end
    typed = resume.complete(["optim.lr=0.4", "hydra.run.dir=o", "resume=true"], False, CONF)
    assert typed == ["data=imagenette", "+trainer.min_epochs=1", "optim.lr=0.4", *end]
    assert resume.complete(typed, False, CONF) == typed  # another process of the same run types it once more
    whole = ["--config-path", "o/.hydra", "hydra.run.dir=o", "resume=true"]
    assert resume.complete(whole, False, CONF) == whole
    assert resume.complete(["resume=true", "hydra.run.dir=new"], False, CONF) == ["resume=true", "hydra.run.dir=new"]
    assert resume.complete(["seed=1"], False, CONF) == ["seed=1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resume=true"], "resume=true: which run"),
        (["resume=nowhere"], "resume=nowhere: there is no such run"),
        (["resume=."], "resume=.: it has no .hydra/overrides.yaml"),
        (["resume=o/.hydra/overrides.yaml"], "a run goes on from its directory's checkpoints/last.ckpt"),
    ],
)
def test_a_command_that_names_no_run_is_refused(began, monkeypatch, words, said):
    monkeypatch.chdir(began.parent)
    with pytest.raises(SoftgateError) as error:
        resume.complete(words, False, CONF)
    assert said in str(error.value)
    with pytest.raises(SoftgateError, match="one run goes on at a time"):
        resume.complete(["resume=o"], several=True, configs=CONF)


# -- files --------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    files.write("old", path)

    def broken() -> None:
        with files.replacing(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_rows_are_taken_back_and_a_row_cut_short_is_none(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    first.log_metrics({"epoch": 0, "a": 1.5}, 0)
    first.log_metrics({"epoch": 0, "b": 2.5}, 1)
    first.log_metrics({"epoch": 1, "a": 3.5}, 2)
    assert path.read_text().splitlines() == ["epoch,step,a,b", "0,0,1.5,", "0,1,,2.5", "1,2,3.5,"]
    with path.open("a") as file:
        file.write("1,3,4.")
    again = MetricsFile(path)
    assert again.rewind(2) == 1
    again.log_metrics({"epoch": 1, "c": 4.5}, 3)
    assert path.read_text().splitlines() == ["epoch,step,a,b,c", "0,0,1.5,,", "0,1,,2.5,", "1,3,,,4.5"]
    fresh = MetricsFile(path)
    fresh.log_metrics({"epoch": 0, "z": 1.0}, 0)
    assert path.read_text().splitlines() == ["epoch,step,z", "0,0,1.0"]


def test_a_resumed_run_writes_its_epochs_of_a_file_anew(tmp_path):
    path = tmp_path / "diagnostics.csv"
    files.write_csv([{"epoch": epoch, "a": epoch * 2} for epoch in (0, 0, 1, 2)], path)
    keep(path, 1)
    assert path.read_text().splitlines() == ["epoch,a", "0,0", "0,0"]
    keep(path, 0)
    assert path.read_text().splitlines() == ["epoch,a"]
    keep(tmp_path / "none.csv", 1)
    assert not (tmp_path / "none.csv").exists()
