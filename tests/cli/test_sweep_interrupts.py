"""An interrupted sweep ends its jobs, lets them save, and leaves no process behind."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from pretended_sweep import AT, rows
from softgate.cli.signals import ends_are_interrupts


def interrupt_when(ready, *signals: int) -> None:
    """Sends this process signals, a second apart, as soon as `ready()`."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not ready():  # the test has failed by now, and a signal would end the ones after it
            return
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_jobs_and_lets_them_save_a_checkpoint(sweep, tmp_path, number):
    sweep.plan = {"0": "wait", "1": "wait", "2": "wait"}
    interrupt_when(lambda: len(list(tmp_path.glob("sweep/*/waits"))) == 2, number)
    assert sweep("seed=0,1,2", AT, "hydra.launcher.n_jobs=2") == 130
    assert len(list(tmp_path.glob("sweep/*/checkpoint"))) == 2
    assert [row["status"] for row in rows(tmp_path)] == ["interrupted", "interrupted", "waiting"]
    sweep.plan = {}
    assert sweep("seed=0,1,2", AT, "sweep.resume=true") == 0
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 3


def test_behind_a_sweep_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt), ends_are_interrupts():
        signal.raise_signal(signal.SIGHUP)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_job_that_is_interrupted_after_its_last_act_has_finished(sweep, tmp_path):
    sweep.plan = {"0": "late"}
    interrupt_when(lambda: any(tmp_path.glob("sweep/*/waits")), signal.SIGINT)
    assert sweep("seed=0,1", AT) == 130
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "waiting"]
    assert float(rows(tmp_path)[0]["seconds"]) == 1.5  # of training, as after sweep.resume


@pytest.mark.parametrize(("grace", "signals"), [(0.5, [signal.SIGINT]), (60, [signal.SIGINT, signal.SIGINT])])
def test_a_job_that_does_not_leave_is_killed_after_the_grace_or_at_a_second_ctrl_c(sweep, tmp_path, grace, signals):
    sweep.plan = {"0": "stubborn"}
    interrupt_when(lambda: any(tmp_path.glob("sweep/*/waits")), *signals)
    assert sweep("seed=0,1", AT, f"hydra.launcher.grace={grace}") == 130
    assert [row["status"] for row in rows(tmp_path)] == ["interrupted", "waiting"]
    assert float(rows(tmp_path)[0]["seconds"]) < 30


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
