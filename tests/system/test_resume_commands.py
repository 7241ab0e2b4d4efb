"""Resuming and several processes, as a user types it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
WORDS = [
    *("print_config=false", "trainer.enable_progress_bar=false", "callbacks=none", "trainer.max_epochs=1"),
    *("model=squeezenet1_1", "data.size=32", "trainer.limit_train_batches=12", "plugins=[without_dropout]"),
]
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=8"]


def begin(cwd: Path, *words: str, **kwargs) -> subprocess.Popen[str]:
    # Dropout is drawn by each process for itself.
    (cwd / "without_dropout.py").write_text("import torch\ntorch.nn.Dropout.forward = lambda self, x: x\n")
    line = [sys.executable, str(ROOT / "train.py"), *words]
    return subprocess.Popen(line, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


def run(cwd: Path, *words: str, status: int = 0) -> str:
    process = begin(cwd, *words)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == status, output
    return output


def curve(directory: Path) -> list[dict[str, float]]:
    with (directory / "metrics.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [{k: v for k, v in row.items() if not k.endswith(("_step", "per_second"))} for row in rows if len(row) > 3]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one_at_the_same_global_batch(tmp_path):
    run(tmp_path, *WORDS, "data.batch_size=16", "hydra.run.dir=one")
    run(tmp_path, *WORDS, *DDP, "hydra.run.dir=two")
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == len(two) == 2  # 359 validation images: two processes do not have equally many
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    for name, value in weights(tmp_path / "one").items():
        assert torch.allclose(value, weights(tmp_path / "two")[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.slow
def test_a_killed_command_goes_on_by_its_directory_alone(tmp_path):
    words = [*WORDS, "data.batch_size=8", "trainer.max_epochs=2", "trainer.limit_train_batches=40", "optim.lr=0.02"]
    process = begin(tmp_path, *words, "callbacks.checkpoint.every_n_steps=5", "hydra.run.dir=run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 80
    refused = run(tmp_path, "resume=run", status=2)
    assert "type plugins=[without_dropout] yourself" in refused
    assert len(refused.splitlines()) == 1
    output = run(tmp_path, "resume=run", "plugins=[without_dropout]")
    assert "finished" in output
    assert [row["epoch"] for row in curve(tmp_path / "run") if "train/loss" in row] == [0, 1]
    kept = (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    refused = run(tmp_path, "hydra.run.dir=run", status=2)
    assert refused.startswith("error: hydra.run.dir=run: there is a run in it")
    assert len(refused.splitlines()) == 1
    assert (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text() == kept


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_bit_for_bit(tmp_path):
    words = [*WORDS, *DDP, "surrogate.scale=channel", "trainer.max_epochs=2", "callbacks.checkpoint.every_n_steps=5"]
    run(tmp_path, *words, "hydra.run.dir=whole")
    process = begin(tmp_path, *words, "hydra.run.dir=killed", start_new_session=True)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    step = torch.load(last, weights_only=True)["global_step"]
    assert step < 24
    run(tmp_path, "resume=killed", "plugins=[without_dropout]")
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    for a, b in zip(curve(tmp_path / "whole"), curve(tmp_path / "killed"), strict=True):
        assert a == pytest.approx(b, rel=1e-6), step
    assert json.loads((tmp_path / "killed" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_two_processes_that_are_asked_to_stop_stop_together(tmp_path):
    words = [*WORDS, *DDP, "trainer.max_epochs=100", "trainer.limit_train_batches=60", "hydra.run.dir=run"]
    process = begin(tmp_path, *words, "callbacks.checkpoint.every_n_steps=5", start_new_session=True)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # one of them
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 143, output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
