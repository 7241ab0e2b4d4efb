"""An interrupted sweep ends its jobs, lets them save, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pretended_sweep import AT, rows
from softgate import signals
from softgate.cli.sweep import watchdog


def interrupt_when(ready, *numbers: int) -> None:
    """Sends this process signals, a second apart, as soon as `ready()`."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not ready():  # the test has failed by now, and a signal would end the ones after it
            return
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_jobs_and_lets_them_save_a_checkpoint(sweep, tmp_path, capfd, number):
    sweep.plan = {"0": "wait", "1": "wait", "2": "wait"}
    interrupt_when(lambda: len(list(tmp_path.glob("sweep/*/waits"))) == 2, number)
    assert sweep("seed=0,1,2", AT, "hydra.launcher.n_jobs=2") == 128 + number
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("stopped by ")]
    assert line.endswith(
        ": 3 of 3 jobs did not finish, 1 of them never started; "
        "the same command with sweep.resume=true goes on with them."
    )
    assert len(list(tmp_path.glob("sweep/*/checkpoint"))) == 2
    assert [row["status"] for row in rows(tmp_path)] == ["interrupted", "interrupted", "waiting"]
    sweep.plan = {}
    assert sweep("seed=0,1,2", AT, "sweep.resume=true") == 0
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 3


def test_behind_a_sweep_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt), signals.raised():
        signal.raise_signal(signal.SIGHUP)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_job_that_is_interrupted_after_its_last_act_has_finished(sweep, tmp_path):
    sweep.plan = {"0": "late"}
    interrupt_when(lambda: any(tmp_path.glob("sweep/*/waits")), signal.SIGINT)
    assert sweep("seed=0,1", AT) == 130
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "waiting"]
    assert float(rows(tmp_path)[0]["seconds"]) == 1.5  # of training, as after sweep.resume


@pytest.mark.parametrize(("grace", "numbers"), [(0.5, [signal.SIGINT]), (60, [signal.SIGINT, signal.SIGINT])])
def test_a_job_that_does_not_leave_is_killed_after_the_grace_or_at_a_second_ctrl_c(sweep, tmp_path, grace, numbers):
    sweep.plan = {"0": "stubborn"}
    interrupt_when(lambda: any(tmp_path.glob("sweep/*/waits")), *numbers)
    assert sweep("seed=0,1", AT, f"hydra.launcher.grace={grace}") == 130
    assert [row["status"] for row in rows(tmp_path)] == ["interrupted", "waiting"]
    assert float(rows(tmp_path)[0]["seconds"]) < 30


def test_a_signal_while_the_last_job_ends_is_not_lost(sweep, tmp_path, capfd, monkeypatch):
    from softgate.cli.sweep.processes import Process

    ended = Process.ended

    def interrupted(process: Process) -> bool:
        if not ended(process):
            return False
        signal.raise_signal(signal.SIGTERM)
        return True

    monkeypatch.setattr(Process, "ended", interrupted)
    assert sweep("seed=0", AT) == 143
    assert "stopped by SIGTERM: every job that was begun has finished, see " in capfd.readouterr().err


def test_a_sigterm_that_comes_twice_lets_the_jobs_save(sweep, tmp_path):
    # As from `timeout uv run train.py`: uv hands on what its process group has got already.
    sweep.plan = {"0": "slow"}
    interrupt_when(lambda: any(tmp_path.glob("sweep/*/waits")), signal.SIGTERM, signal.SIGTERM)
    assert sweep("seed=0,1", AT) == 143
    assert len(list(tmp_path.glob("sweep/*/checkpoint"))) == 1


def test_a_signal_in_the_midst_of_starting_a_job_leaves_none_behind(sweep, tmp_path, monkeypatch):
    from softgate.cli.sweep import processes

    made = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    sweep.plan = {"0": "stubborn"}
    monkeypatch.setattr(processes.subprocess, "Popen", Popen)
    assert sweep("seed=0,1", AT) == 130
    (process,) = made
    assert process.poll() is not None
    assert [row["status"] for row in rows(tmp_path)] == ["interrupted", "waiting"]


@pytest.mark.parametrize(("vanished", "watched"), [(True, True), (False, False)])
def test_a_job_whose_sweep_vanished_before_it_looked_ends_too(monkeypatch, vanished, watched):
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    if vanished:
        parent.kill()
        parent.wait()
    monkeypatch.setenv(watchdog.PARENT, str(parent.pid))
    ended = threading.Event()
    monkeypatch.setattr(os, "killpg", lambda group, number: ended.set())
    watchdog.follow_parent()
    assert ended.wait(10 if watched else 0.2) == watched  # one whose parent lives was started by a job
    parent.kill()
    parent.communicate()


def test_jobs_are_ended_also_where_the_terminal_has_gone(sweep, tmp_path, monkeypatch):
    from rich.console import Console

    def gone(self, *args, **kwargs) -> None:
        raise BrokenPipeError

    sweep.plan = {"0": "wait"}

    def break_off() -> bool:
        if any(tmp_path.glob("sweep/*/waits")):
            monkeypatch.setattr(Console, "print", gone)
            return True
        return False

    interrupt_when(break_off, signal.SIGHUP)
    with pytest.raises(BrokenPipeError):  # of the table at the end
        sweep("seed=0,1", AT)
    assert len(list(tmp_path.glob("sweep/*/checkpoint"))) == 1
    assert [row["status"] for row in rows(tmp_path)] == ["interrupted", "waiting"]


def test_a_process_that_a_job_leaves_behind_is_ended_with_it(sweep, tmp_path):
    # As a rank of DDP whose first process was killed: it waits for it up to half an hour.
    code = (
        "import subprocess,sys,os; p=subprocess.Popen(['sleep','100']); print(p.pid,flush=True); os.kill(os.getpid(),9)"
    )
    sweep._monkeypatch.setattr("softgate.cli.sweep.jobs.Job.command", lambda job: [sys.executable, "-c", code])
    assert sweep("seed=0", AT) == 1
    (log,) = tmp_path.glob("sweep/*/output.log")
    state = Path(f"/proc/{log.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
