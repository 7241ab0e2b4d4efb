"""The commands on a device: a run is trained, resumed, read out and evaluated where the GPU is."""

import json
import subprocess
import sys

import pytest

from configs import ROOT


def command(cwd, *words):
    line = [sys.executable, str(ROOT / words[0]), *words[1:]]
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_is_trained_resumed_and_evaluated(device, tmp_path):
    where = "gpu" if device.type == "cuda" else "cpu"
    small = ["data.size=16", "trainer.limit_train_batches=4", "callbacks.grids.every_n_epochs=1"]
    command(tmp_path, "train.py", f"trainer={where}", *small, "trainer.max_epochs=1", "hydra.run.dir=run")
    command(tmp_path, "train.py", "resume=run", "trainer.max_epochs=2")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    command(tmp_path, "evaluate.py", "runs=run", "hydra.run.dir=look", f"accelerator={where}")
    assert (tmp_path / "look" / "results.json").is_file()
