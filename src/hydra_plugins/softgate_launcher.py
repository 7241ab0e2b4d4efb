"""Where Hydra looks for launchers. It imports this file at every start; the work is done in `softgate.cli.sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ProcessLauncher(Launcher):
    """Runs every job of a sweep as a process of its own; `conf/hydra/launcher/processes.yaml` has the options."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Chooses who launches: this, or Hydra's own launcher where torchrun or srun have started the ranks."""
        from softgate.cli.sweep.launch import launcher

        self.launcher = launcher(self.options, hydra_context, task_function, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs and returns what became of each, in order."""
        return self.launcher.launch(job_overrides, initial_job_idx)
