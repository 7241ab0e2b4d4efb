"""The commands as a user types them, each in a process of its own."""

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
SHORT = ["trainer.limit_train_batches=3", "trainer.limit_val_batches=2", "trainer.max_epochs=2", "data.batch_size=8"]


def command(cwd: Path, script: str, *words: str, **kwargs) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / script), *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=900, **kwargs)


def test_train_then_evaluate(tmp_path):
    done = command(tmp_path, "train.py", *SHORT, "data.size=16")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs").glob("*/*")
    assert run.name.endswith("digits-resnet18-excitation")
    assert "17 ReLU and 1 max-pool call sites" in " ".join(done.stdout.split())
    assert "val acc" in done.stdout
    assert str(run.relative_to(tmp_path)) in done.stdout
    for name in (".hydra", "config.yaml", "metrics.csv", "curves.png", "summary.json", "checkpoints", "grids"):
        assert (run / name).exists(), name
    done = command(tmp_path, "evaluate.py", f"runs={run}")
    assert done.returncode == 0, done.stderr
    assert "ECE" in done.stdout
    (results,) = (tmp_path / "outputs" / "evaluations").glob("*/*/results.json")
    assert {"acc", "acc5", "loss", "ece"} <= json.loads(results.read_text())["runs"][0].keys()


def test_ctrl_c_leaves_a_loadable_checkpoint_and_a_finished_logger_run(tmp_path):
    env = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    words = ["logger=wandb", "trainer.max_epochs=1000", "data.size=16", "hydra.run.dir=run", "callbacks=none"]
    line = [sys.executable, str(ROOT / "train.py"), *words]
    process = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 600
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
    from softgate.training import SoftgateModule
    from wandb_file import read_run

    assert torch.load(last, weights_only=True)["global_step"] > 0
    SoftgateModule.load_from_checkpoint(last)
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    codes = [r.exit.exit_code for r in read_run(file) if r.WhichOneof("record_type") == "exit"]
    assert codes == [1]


@pytest.mark.slow
def test_two_cpu_processes_train_one_model(tmp_path):
    words = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.size=16", "hydra.run.dir=run"]
    words += ["callbacks=alignment", "logger=tensorboard", "callbacks.alignment.images=20", "callbacks.alignment.few=3"]
    words += ["callbacks.alignment.draws=2", "callbacks.alignment.dear_epochs=0"]
    done = command(tmp_path, "train.py", *SHORT, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "grids" / "epoch=001.png").is_file()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    shown = EventAccumulator(str(events)).Reload()
    assert [event.step for event in shown.Scalars("align/soft/noise_cosine")] == [
        event.step for event in shown.Images("grids/pullbacks")
    ]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_two_cpu_processes_train_a_transformer_whose_queries_get_no_gradient(tmp_path):
    """DistributedDataParallel waits for a gradient of every parameter: those of queries and keys are zero, not none."""
    words = ["model=vit_b_16", "surrogate=semantic", "model.width=0.1", "model.depth=0.1", "optim=adamw"]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.size=8", "hydra.run.dir=run"]
    done = command(tmp_path, "train.py", *SHORT, *words, "callbacks=none")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_the_main_job_reaches_97_percent_on_real_digits(tmp_path):
    started = time.monotonic()
    done = command(tmp_path, "train.py", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    print(f"{time.monotonic() - started:.0f} s, accuracy {summary['val/acc']}")
    assert summary["val/acc"] >= 0.97


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_one_sentence_a_status_of_its_own_and_a_failed_logger_run(tmp_path):
    env = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    words = ["data.size=16", "callbacks=none", "optim.lr=1e30", "logger=wandb", "hydra.run.dir=run"]
    done = command(tmp_path, "train.py", *SHORT, *words, env=env)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "training diverged: at step " in sentence
    assert "optim.lr=1e+30" in sentence
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    from wandb_file import read_run

    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert [r.exit.exit_code for r in read_run(file) if r.WhichOneof("record_type") == "exit"] == [1]
