"""Sweeps and ranks as a user starts them: real processes, two-process gloo, W&B's offline files.

What the launcher does with its jobs is in `tests/cli/test_sweep_jobs.py`;
here it is real runs that must come out right.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wandb_file import read_run

ROOT = Path(__file__).parents[2]

PROBE = """
import hashlib, json, os, signal
from pathlib import Path
from softgate.training import SoftgateModule


def start(self):
    if Path(self.trainer.default_root_dir).name.startswith(os.environ.get("KILLED", "none")):
        os.kill(os.getpid(), signal.SIGKILL)


def end(self):
    state = hashlib.sha256()
    for value in self.state_dict().values():
        state.update(value.detach().contiguous().numpy().tobytes())
    seen = {"world": self.trainer.world_size, "weights": state.hexdigest(), "lr": self.optim.lr}
    (Path(self.trainer.default_root_dir) / f"rank{self.global_rank}.json").write_text(json.dumps(seen))


SoftgateModule.on_train_start, SoftgateModule.on_train_end = start, end
"""
"""A module for `plugins=`: every rank writes down what it ended with, and one job is killed as it begins to train."""

TINY = (
    *("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.max_epochs=1", "data.batch_size=8"),
    *("data.size=16", "callbacks=none", "print_config=false", "trainer.enable_progress_bar=false", "plugins=[probe]"),
)
DDP = ("trainer=ddp", "trainer.accelerator=cpu")


def started(cwd: Path, *words: str, program: tuple[str, ...] = (sys.executable,), **env: str) -> subprocess.Popen[str]:
    (cwd / "probe.py").write_text(PROBE)
    line = [*program, str(ROOT / "train.py"), *words, *TINY]
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=cwd, env=os.environ | quiet | env, stdout=pipe, stderr=pipe, text=True)


def command(cwd: Path, *words: str, **kwargs) -> tuple[int, str, str]:
    process = started(cwd, *words, **kwargs)
    output, errors = process.communicate(timeout=900)
    return process.returncode, output, errors


def sweep(cwd: Path, *words: str, **kwargs) -> tuple[int, str, str]:
    return command(cwd, "-m", *words, "hydra.sweep.dir=sweep", **kwargs)


def jobs(cwd: Path) -> list[Path]:
    return sorted(path for path in (cwd / "sweep").iterdir() if path.is_dir())


def seen_by_ranks(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(run.glob("rank*.json"))]


def statuses(cwd: Path) -> list[str]:
    with (cwd / "sweep" / "sweep.csv").open(newline="") as file:
        return [row["status"] for row in csv.DictReader(file)]


def wandb_runs(run: Path) -> list[dict]:
    """Id, group, config and exit code of every W&B run in a run's directory."""
    found = []
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        records = read_run(path)
        begun = next((r.run for r in records if r.WhichOneof("record_type") == "run"), None)
        if begun is None:  # of a process that was killed before W&B had written anything
            continue
        config = {item.key: json.loads(item.value_json) for item in begun.config.update}
        codes = [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"]
        found.append({"id": begun.run_id, "group": begun.run_group, "config": config, "codes": codes})
    return found


@pytest.mark.slow
def test_a_sweep_over_one_and_two_processes_one_of_them_killed_then_gone_on_with(tmp_path):
    words = ["trainer.devices=2,1", *DDP, "logger=wandb"]
    status, output, errors = sweep(tmp_path, *words, KILLED="1")
    assert status == 1, errors
    assert statuses(tmp_path) == ["finished", "killed by SIGKILL"]
    assert output.count("sweep of 2 jobs") == 1
    both, _ = jobs(tmp_path)
    ranks = seen_by_ranks(both)
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert ranks[0] == ranks[1]
    summary = (both / "summary.json").stat().st_mtime_ns
    status, _, errors = sweep(tmp_path, *words, "sweep.resume=true")
    assert status == 0, errors
    assert statuses(tmp_path) == ["finished", "finished"]
    both, single = jobs(tmp_path)  # and no third directory
    assert (both / "summary.json").stat().st_mtime_ns == summary
    assert [rank["world"] for rank in seen_by_ranks(single)] == [1]
    (first,), second = wandb_runs(both), wandb_runs(single)
    assert first["id"] not in [run["id"] for run in second]
    assert first["codes"] == [0]
    assert second[-1]["codes"] == [0]
    assert all(run["codes"] == [] for run in second[:-1])  # a killed process cannot say how it ended
    assert {run["group"] for run in (first, *second)} == {f"{tmp_path.name}/sweep"}
    assert first["config"]["sweep"]["job"] == 0
    assert first["config"]["sweep"]["overrides"][:2] == ["trainer.devices=2", "trainer=ddp"]
    assert yaml.safe_load((single / "config.yaml").read_text())["sweep"]["job"] == 1


@pytest.mark.slow
def test_two_ranks_of_torchrun_share_one_directory(tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29617")
    status, _, errors = command(tmp_path, *DDP, "trainer.devices=2", program=torchrun)
    assert status == 0, errors
    (run,) = tmp_path.glob("outputs/*/*")
    ranks = seen_by_ranks(run)
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert ranks[0] == ranks[1]
    assert (run / ".hydra" / "config.yaml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_four_jobs_of_two_processes_each(tmp_path, at_once):
    words = ["surrogate=none,excitation", "seed=0,1", *DDP, "trainer.devices=2", "logger=wandb"]
    status, output, errors = sweep(tmp_path, *words, f"hydra.launcher.n_jobs={at_once}")
    assert status == 0, errors
    assert output.count("sweep of 4 jobs") == 1
    assert statuses(tmp_path) == ["finished"] * 4
    runs = jobs(tmp_path)
    assert len(runs) == 4
    assert len({rank["weights"] for run in runs for rank in seen_by_ranks(run)}) == 4
    for run in runs:
        ranks = seen_by_ranks(run)
        assert [rank["world"] for rank in ranks] == [2, 2]
        assert ranks[0] == ranks[1]
    logged = [one for run in runs for one in wandb_runs(run)]
    assert len(logged) == 4  # one W&B run for a job, not one for a process
    assert len({one["id"] for one in logged}) == 4
    assert len({one["group"] for one in logged}) == 1
    assert [one["config"]["sweep"]["job"] for one in logged] == [0, 1, 2, 3]
    assert [one["codes"] for one in logged] == [[0]] * 4
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"] == ["sweep"]


@pytest.mark.slow
def test_a_search_gives_both_processes_the_same_values(tmp_path):
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    words = ["hydra/sweeper=tpe", "optim.lr=interval(0.01,0.1)", "hydra.sweeper.n_trials=2", *DDP, "trainer.devices=2"]
    status, _, errors = sweep(tmp_path, *words)
    assert status == 0, errors
    rates = [[rank["lr"] for rank in seen_by_ranks(run)] for run in jobs(tmp_path)]
    assert [len(each) for each in rates] == [2, 2]
    assert all(first == second for first, second in rates)
    assert rates[0] != rates[1]


@pytest.mark.slow
def test_one_two_and_one_processes_in_one_sweep(tmp_path):
    status, _, errors = sweep(tmp_path, "trainer.devices=1,2,1", *DDP, "hydra.sweep.subdir=${hydra:job.num}")
    assert status == 0, errors
    assert [len(seen_by_ranks(run)) for run in jobs(tmp_path)] == [1, 2, 1]
    assert [seen_by_ranks(run)[0]["world"] for run in jobs(tmp_path)] == [1, 2, 1]
    assert seen_by_ranks(jobs(tmp_path)[0]) == seen_by_ranks(jobs(tmp_path)[2])


@pytest.mark.slow
def test_a_sweep_under_torchrun_is_left_to_its_ranks(tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29618")
    words = ["-m", "seed=0,1", *DDP, "trainer.devices=2"]
    status, _, errors = command(tmp_path, *words, program=torchrun)
    assert status == 0, errors
    runs = sorted(tmp_path.glob("outputs/sweeps/*/*/*-digits*"))
    assert [run.name[0] for run in runs] == ["0", "1"]
    for run in runs:
        first, second = seen_by_ranks(run)
        assert first == second


@pytest.mark.slow
def test_two_machines_of_torchrun_share_one_directory(tmp_path):
    def node(number: int) -> subprocess.Popen[str]:
        where = ("--nnodes=2", f"--node-rank={number}", "--nproc-per-node=1", "--master-addr=127.0.0.1")
        torchrun = (sys.executable, "-m", "torch.distributed.run", *where, "--master-port=29619")
        return started(tmp_path, *DDP, "trainer.devices=1", "trainer.num_nodes=2", program=torchrun)

    for process in [node(0), node(1)]:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    (run,) = tmp_path.glob("outputs/*/*")
    first, second = seen_by_ranks(run)
    assert first == second
    assert first["world"] == 2


@pytest.mark.slow
def test_two_tasks_of_a_slurm_step_share_one_directory(tmp_path):
    # What srun sets; there is no SLURM on a machine that tests.
    step = {"SLURM_JOB_ID": "4242", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "softgate", "SLURM_NODELIST": "127.0.0.1"}
    step |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    words = ["trainer=slurm", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]

    def task(number: int) -> subprocess.Popen[str]:
        return started(tmp_path, *words, **step, SLURM_PROCID=str(number), SLURM_LOCALID=str(number))

    for process in [task(0), task(1)]:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    (run,) = tmp_path.glob("outputs/slurm/4242.0-*")
    first, second = seen_by_ranks(run)
    assert first == second
    assert first["world"] == 2


@pytest.mark.slow
def test_submitit_runs_jobs_of_their_own(tmp_path):
    pytest.importorskip("submitit", reason="the extra sweep is not installed")
    status, _, errors = sweep(tmp_path, "hydra/launcher=submitit_local", "seed=0,1", "logger=wandb")
    assert status == 0, errors
    runs = [path for path in jobs(tmp_path) if path.name[0] in "01"]
    assert [seen_by_ranks(run)[0]["world"] for run in runs] == [1, 1]
    logged = [one for run in runs for one in wandb_runs(run)]
    assert [one["config"]["sweep"]["job"] for one in logged] == [0, 1]
    assert {one["group"] for one in logged} == {f"{tmp_path.name}/sweep"}
