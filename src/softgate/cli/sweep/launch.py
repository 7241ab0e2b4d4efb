"""Launches the jobs of a sweep and keeps its books."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from pydantic import Field

from softgate import files, locks, signals
from softgate.cli import ranks, stops
from softgate.cli.sweep import display, gpus, processes, resume
from softgate.cli.sweep.jobs import FINISHED, RUNNING, WAITING, Job, admit, compose, require_same_places, said
from softgate.errors import Stopped, require
from softgate.options import Count, Number, Options, Says
from softgate.tables import Terminal

TICK = 0.2


class Launches(Protocol):
    """What a sweeper calls."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs jobs."""
        ...


class LauncherConfig(Options):
    """The options of `hydra/launcher=processes`."""

    at: ClassVar[str] = "hydra.launcher"

    n_jobs: Count = Field(description="jobs at a time")
    jobs_per_gpu: Count = Field(description="jobs that may share a GPU")
    grace: Annotated[Annotated[Number, Field(ge=0)], Says("seconds >= 0 are needed")] = Field(
        description="seconds that jobs have to end after Ctrl-C"
    )


def launcher(given: Mapping[str, Any], context: HydraContext, function: TaskFunction, config: DictConfig) -> Launches:
    """This module's launcher, or Hydra's own where another program has started several ranks already.

    Raises:
        SoftgateError: For wrong options, and for a search that every rank would do by itself.
    """
    options = LauncherConfig.read(given)
    if not ranks.several():
        return Sweep(options, context, config)
    require(
        str(config.hydra.sweeper._target_).endswith(".BasicSweeper"),
        "hydra/sweeper: each rank of torchrun or srun would search by itself; start a search without them, "
        "with trainer=ddp or hydra/launcher=slurm.",
    )
    basic = BasicLauncher()
    basic.setup(hydra_context=context, task_function=function, config=config)
    return basic


class Sweep:
    """All jobs of a sweep, over one call of `launch` or, from a search, several.

    Args:
        options: Those of the launcher.
        context: What composes configs.
        config: The sweep's own config.
    """

    latest: Sweep | None = None

    def __init__(self, options: LauncherConfig, context: HydraContext, config: DictConfig) -> None:
        self.n_jobs, self.jobs_per_gpu, self.grace = options.n_jobs, options.jobs_per_gpu, options.grace
        self.context, self.config = context, config
        self.directory = Path(str(config.hydra.sweep.dir)).absolute()
        self.resume = bool(config.sweep.resume or config.resume)
        self.jobs: list[Job] = []
        self.gpus = gpus.visible()
        self.console = Terminal()
        Sweep.latest = self

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Runs jobs, each as a process, and returns how each ended.

        Raises:
            SoftgateError: Before any of them is started, for a mistake in any of them.
            Stopped: After a signal, when the processes have ended.
        """
        words = enumerate(job_overrides, initial_job_idx)
        jobs = [compose(number, overrides, self.context, self.config) for number, overrides in words]
        self._check(jobs)
        self.jobs += jobs
        files.folder(self.directory)
        locks.take(self.directory)
        resume.record(sys.argv[1:], self.directory)
        stops.current.kept = self.left
        waiting = deque(job for job in jobs if job.status != FINISHED)
        running: list[processes.Process] = []
        dealer = gpus.Dealer(self.gpus, self.jobs_per_gpu)
        shown = display.Display(self.console, len(self.jobs))
        self._note()
        with signals.noted() as came:  # and never raised in the midst of starting or ending a job
            try:
                with shown.shown():
                    while waiting or running:
                        if came:
                            raise Stopped(came[0])
                        self._start(waiting, running, dealer, shown)
                        time.sleep(TICK)
                        self._collect(running, dealer, shown)
                        pace = [(process.job, time.monotonic() - process.started) for process in running]
                        shown.update(pace, self.jobs)
            except BaseException:  # whatever goes wrong here, no job is left behind
                with suppress(OSError):  # the terminal may be what has gone
                    self.console.print("ending the jobs ...")
                processes.end(running, self.grace, came)
                raise
            finally:
                self._note()
        if came:  # while the last job ended
            raise Stopped(came[0])
        return [job.returned() for job in jobs]

    def _check(self, jobs: Sequence[Job]) -> None:
        names = {job.directory for job in jobs} | {job.directory for job in self.jobs}
        distinct = len(names) == len(jobs) + len(self.jobs)
        require(distinct, "hydra.sweep.subdir: every job needs a directory of its own; use ${hydra:job.num} in it.")
        for job in jobs:
            self._check_place(job)
            admit(job, self.resume)
        if self.resume:
            require_same_places(jobs, self.directory)

    def _check_place(self, job: Job) -> None:
        trainer, start = job.config.trainer, f"job {job.number} ({' '.join(said(job.overrides, job.told))})"
        nodes, devices = trainer.num_nodes, trainer.devices
        slurm = "a sweep over several machines needs hydra/launcher=slurm"
        require(nodes == 1, f"{start}: trainer.num_nodes={nodes}: {slurm}.")
        share = self._share(job)
        most = max(share, default=-1) + 1 if isinstance(share, list) else share
        require(most <= len(self.gpus), f"{start}: trainer.devices={devices}: there are {len(self.gpus)} GPUs.")

    def _share(self, job: Job) -> int | list[int]:
        """How many GPUs a job takes, or which."""
        trainer = job.config.trainer
        return gpus.wanted(trainer.accelerator, trainer.devices, len(self.gpus), self.n_jobs)

    def _start(
        self, waiting: deque[Job], running: list[processes.Process], dealer: gpus.Dealer, shown: display.Display
    ) -> None:
        while waiting and len(running) < self.n_jobs:
            job = waiting[0]
            share = self._share(job)
            taken = dealer.take(share)
            if taken is None:  # in order: a job for many GPUs is not overtaken for ever
                return
            waiting.popleft()
            job.save()
            # A list in trainer.devices counts among all GPUs, so the job must see them all.
            seen = taken if self.gpus and not isinstance(share, list) else None
            env = processes.environment(job, seen, self._threads(job))
            running.append(processes.Process(job, env, taken))
            job.status = RUNNING
            shown.changed(job, self.jobs)
            self._note()

    def _collect(self, running: list[processes.Process], dealer: gpus.Dealer, shown: display.Display) -> None:
        for process in [process for process in running if process.ended()]:
            running.remove(process)
            dealer.give_back(process.gpus)
            shown.changed(process.job, self.jobs)
            self._note()

    def _threads(self, job: Job) -> int | None:
        """Jobs side by side share the cores; PyTorch would give all of them to each."""
        if self.n_jobs == 1:
            return None
        devices: Any = job.config.trainer.devices
        each = max(1, devices) if isinstance(devices, int) else 1
        cores = os.cpu_count() or 1
        return max(1, cores // (self.n_jobs * each))

    def _note(self) -> None:
        if self.jobs and self.directory.is_dir():
            display.write_csv(self.jobs, self.directory / "sweep.csv")

    def left(self) -> str:
        """How many jobs did not finish, and what goes on with them."""
        left = [job for job in self.jobs if job.status != FINISHED]
        if not left:
            return f"every job that was begun has finished, see {self.directory}"
        never = sum(job.status == WAITING for job in left)
        started = f", {never} of them never started" if never else ""
        return (
            f"{len(left)} of {len(self.jobs)} jobs did not finish{started}; the same command with "
            "sweep.resume=true goes on with them"
        )

    def conclude(self, stopped: bool = False) -> bool:
        """Prints the table; whether all jobs finished.

        Args:
            stopped: Whether a signal ended it, so that `left` is said with the signal.
        """
        if not self.jobs:
            return True
        title = f"sweep of {len(self.jobs)} job{'s' if len(self.jobs) > 1 else ''}"
        self.console.print(display.table(self.jobs, title).rich())
        self.console.print(f"sweep directory: {self.directory}", soft_wrap=True, markup=False)
        whole = all(job.status == FINISHED for job in self.jobs)
        if not whole and not stopped:
            self.console.print(f"{self.left()}.", soft_wrap=True, style="bold red")
        return whole
