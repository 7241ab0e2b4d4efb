"""The processes of a sweep's jobs: starting one, ending one with all that it started, and what its end means."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from softgate.cli import exits
from softgate.cli.sweep.jobs import FINISHED, INTERRUPTED, Job
from softgate.cli.sweep.watchdog import PARENT

LEAVE = 5.0
"""Seconds that other ranks have to follow a process that has ended."""

ERROR = re.compile(r"(?:\[rank\d+\]: *)?(?:error: )?((?<=error: ).*|[\w.]*(?:Error|Exception)\b.*)")
"""A line with what `cli` or Python says of an error; PyTorch puts the rank in front."""

ENDED = {
    0: FINISHED,
    exits.MISTAKE: "refused",
    exits.DIVERGED: "diverged",
    exits.DISK: "could not write",
    exits.MEMORY: "out of memory",
    exits.INTERRUPTED: INTERRUPTED,
    128 + signal.SIGTERM: INTERRUPTED,
    128 + signal.SIGHUP: INTERRUPTED,
}
"""Exit status to what is said of the job."""


def environment(job: Job, gpus: Sequence[str] | None, threads: int | None) -> dict[str, str]:
    """The environment of a job's process.

    Args:
        job: The job.
        gpus: The GPUs it may see; None leaves that as it is.
        threads: Threads for each of its processes; None leaves that to PyTorch.
    """
    env = dict(os.environ)
    for name in ("WANDB_RUN_ID", "WANDB_SERVICE"):  # with these, all jobs would write into one W&B run
        env.pop(name, None)
    if not exits.TRACED:
        env.pop("HYDRA_FULL_ERROR", None)
    env |= {str(key): str(value) for key, value in job.composed.hydra.job.env_set.items()}
    env[PARENT] = str(os.getpid())
    if "SLURM_JOB_ID" in env:  # one task of a SLURM job runs the sweep; Lightning is to start the ranks of each job
        env["SLURM_JOB_NAME"] = "interactive"
    if gpus is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if threads is not None:
        env.setdefault("OMP_NUM_THREADS", str(threads))
    return env


class Process:
    """A running job.

    Args:
        job: The job; its directory is there.
        env: The environment, from `environment`.
        gpus: What to give back when it ends.
    """

    def __init__(self, job: Job, env: Mapping[str, str], gpus: Sequence[str]) -> None:
        self.job, self.gpus = job, list(gpus)
        self.log = job.directory / "output.log"
        self.started = time.monotonic()
        self._before = self.log.stat().st_size if self.log.is_file() else 0
        with self.log.open("ab") as output:
            # A session of its own: Ctrl-C in the terminal reaches the sweep alone, which then ends its jobs in order.
            self._process = subprocess.Popen(
                job.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Whether the process is gone; then the job's fields say how, and its other ranks are gone too."""
        code = self._process.poll()
        if code is None:
            return False
        self._end_ranks(LEAVE if code == 0 else 0.0)
        job = self.job
        job.seconds = time.monotonic() - self.started
        job.read()
        job.status = f"killed by {signal.Signals(-code).name}" if code < 0 else ENDED.get(code, "failed")
        if job.done and (code < 0 or job.status == INTERRUPTED):
            job.status = FINISHED  # the signal came after the run's last act
        if job.status == FINISHED:
            job.seconds = job.trained
        job.why = "" if job.status in (FINISHED, INTERRUPTED) else complaint(self.log, self._before)
        return True

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _end_ranks(self, patience: float) -> None:
        """A rank whose first process is gone waits for it in vain, up to half an hour."""
        deadline = time.monotonic() + patience
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self._process.pid, 0)
                time.sleep(0.05)
            os.killpg(self._process.pid, signal.SIGKILL)


def end(running: Sequence[Process], grace: float, came: Sequence[int]) -> None:
    """Ends jobs as Ctrl-C ends a single run, so that each leaves a checkpoint; SIGKILL after `grace` seconds.

    Args:
        running: The jobs.
        grace: Seconds.
        came: The signals that have come, and come while this waits; a Ctrl-C after the first waits no longer.
    """
    for process in running:
        process.send(signal.SIGINT)
    left = list(running)
    deadline = time.monotonic() + grace
    while left and time.monotonic() < deadline and signal.SIGINT not in came[1:]:
        time.sleep(0.1)
        left = [process for process in left if not process.ended()]
    for process in left:
        process.send(signal.SIGKILL)
        while not process.ended():
            time.sleep(0.05)
    for process in running:
        if process.job.status != FINISHED:
            process.job.status = INTERRUPTED


def complaint(log: Path, start: int = 0) -> str:
    """The last line of an output, from a byte on, that names an error; empty where none does."""
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    found = [match[1] for match in map(ERROR.match, lines) if match]
    return found[-1].strip() if found else ""
