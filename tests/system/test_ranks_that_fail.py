"""One of two real ranks fails: the cause's own words come first, the other ends with it and with its exit status."""

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

FAILS = """
import os, signal, time
import torch
from softgate import SoftgateError
from softgate.data import ImageData
from softgate.training import SoftgateModule

RANK, HOW = os.environ["FAILS"].split(":")


def rank():
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK", "0")


def fail():
    open("failed", "w").write(str(time.time()))
    if HOW == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if HOW == "crashed":
        os._exit(7)
    if HOW == "disk":
        raise OSError(28, "No space left on device", "somewhere")
    if HOW == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    if HOW in ("refused", "unprepared"):
        raise SoftgateError("data.root=x: image 7 cannot be read.")
    raise ZeroDivisionError("the cause's own words")


def training_step(self, batch, index):
    if self.global_step == 3:
        if rank() == RANK and HOW not in ("nan", "unprepared"):
            fail()
        elif "HANGS" in os.environ:  # as in a collective of a library that does not notice
            time.sleep(1000)
    loss = step(self, batch, index)
    return loss * float("nan") if rank() == RANK and HOW == "nan" and self.global_step == 3 else loss


def prepared(self, stage=None):
    if rank() == RANK and HOW == "unprepared":
        fail()
    setup(self, stage)


step, SoftgateModule.training_step = SoftgateModule.training_step, training_step
setup, ImageData.setup = ImageData.setup, prepared
"""

WORDS = (
    *("plugins=[fails]", "print_config=false", "trainer.enable_progress_bar=false", "callbacks=none", "data.size=16"),
    *("data.batch_size=8", "trainer.limit_train_batches=6", "trainer.max_epochs=1"),
    *("callbacks.checkpoint.every_n_steps=2", "model=squeezenet1_1"),
    *("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "hydra.run.dir=run"),
)

LIGHTNING: tuple[str, ...] = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29621")


def kept(cwd: Path) -> str:
    return f"{cwd}/run/checkpoints/last.ckpt is kept, and resume={cwd}/run goes on from it."


def command(cwd: Path, fails: str, *words: str, program: tuple[str, ...] = LIGHTNING, **env: str) -> tuple[int, str]:
    """Exit status and errors of a run of two ranks, all of whose processes must be gone within 30 s of the failure."""
    (cwd / "fails.py").write_text(FAILS)
    line = [*program, str(ROOT / "train.py"), *WORDS, *words]
    env = os.environ | {"FAILS": fails, "OMP_NUM_THREADS": "1"} | env
    process = subprocess.Popen(line, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate(timeout=900)  # the last rank closes the stream, whoever started it
    if (cwd / "failed").exists():
        assert time.time() - float((cwd / "failed").read_text()) < 90  # half a minute, on a machine with other work
    return process.returncode, errors


def sentences(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_where_a_rank_is_killed_the_first_says_so_and_what_is_kept_and_both_end(tmp_path):
    status, errors = command(tmp_path, "1:killed")
    assert status == 137, errors
    (said,) = sentences(errors)
    assert said.startswith("error: rank 1 of 2: its process ")
    assert said.endswith(f"was killed by SIGKILL, as the system does where memory runs out. {kept(tmp_path)}")
    assert "Traceback" not in errors
    assert "gloo" not in errors
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not (tmp_path / "run" / "ranks.json").exists()


@pytest.mark.slow
def test_a_loss_of_one_rank_that_is_no_number_ends_both_with_one_sentence_and_the_last_good_checkpoint(tmp_path):
    status, errors = command(tmp_path, "1:nan", "callbacks.guard.every_n_steps=2")
    assert status == 3, errors
    (said,) = sentences(errors)
    assert said.startswith("error: training diverged: at step 4 the training loss of rank 1 was nan")
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("program", [LIGHTNING, TORCHRUN], ids=["lightning", "torchrun"])
@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("raises", 1, "ZeroDivisionError: the cause's own words."),
        ("refused", 2, "data.root=x: image 7 cannot be read."),
        ("disk", 4, "somewhere: cannot be written: No space left on device."),
        ("memory", 5, "memory ran out at 20.00 MiB more; set data.batch_size lower"),
        ("killed", 137, "process"),
        ("crashed", 137, "process"),
    ],
)
def test_however_a_rank_ends_the_other_ends_with_it(tmp_path, how, status, said, program, rank):
    found, errors = command(tmp_path, f"{rank}:{how}", program=program)
    first, *more = sentences(errors)
    assert not more
    assert first.startswith(f"error: rank {rank} of 2: ")
    assert said in first
    assert first.endswith(kept(tmp_path))
    assert "gloo" not in errors
    # The line of a bug's trace, its last line, and the sentence.
    assert errors.count("the cause's own words") == (3 if how == "raises" else 0)
    if program is LIGHTNING:  # torchrun's own status is 1
        known = how == "crashed" and found == 7
        assert found == (-signal.SIGKILL if how == "killed" and rank == 0 else status) or known


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "refused"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_meanwhile_is_ended(tmp_path, how, rank):
    _, errors = command(tmp_path, f"{rank}:{how}", HANGS="1")
    (said,) = sentences(errors)
    assert said.startswith(f"error: rank {rank} of 2: ")


@pytest.mark.slow
@pytest.mark.parametrize("program", [LIGHTNING, TORCHRUN], ids=["lightning", "torchrun"])
def test_a_rank_that_fails_before_training_ends_the_other_which_waits_for_it(tmp_path, program):
    status, errors = command(tmp_path, "1:unprepared", program=program)
    assert status == (2 if program is LIGHTNING else 1)
    assert sentences(errors) == ["error: rank 1 of 2: data.root=x: image 7 cannot be read."]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "unprepared", "refused"])
def test_a_task_of_a_slurm_step_that_fails_ends_the_other(tmp_path, how):
    # What srun sets; there is no SLURM on a machine that tests.
    step = {"SLURM_JOB_ID": "4243", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "softgate", "SLURM_NODELIST": "127.0.0.1"}
    step |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    (tmp_path / "fails.py").write_text(FAILS)
    words = [*(word for word in WORDS if word != "trainer=ddp"), "trainer=slurm", "trainer.precision=32-true"]

    def task(number: int) -> subprocess.Popen[str]:
        env = os.environ | step | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "FAILS": f"1:{how}"}
        line = [sys.executable, str(ROOT / "train.py"), *words]
        nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
        return subprocess.Popen(line, cwd=tmp_path, env=env, stdout=nothing, stderr=pipe, text=True)

    tasks = [task(0), task(1)]
    errors = [process.communicate(timeout=900)[1] for process in tasks]
    assert time.time() - float((tmp_path / "failed").read_text()) < 90  # half a minute, on a machine with other work
    (said,) = sentences("".join(errors))
    assert said.startswith("error: rank 1 of 2: ")
    assert tasks[0].returncode == (137 if how == "killed" else 2)
