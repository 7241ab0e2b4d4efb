"""`last.ckpt`: the checkpoint that a run goes on from, always of a moment that can be gone on from bit for bit."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from softgate import signals
from softgate.errors import Stopped
from softgate.training.callbacks.guard import finite_weights
from softgate.training.metricsfile import MetricsFile

STATE = "softgate_run"
"""Where a checkpoint keeps what belongs to the run and to no part of it: rows of metrics.csv, seconds trained."""

GOES_ON = ("optimizer_states", "current_model_state", "averaging_state")
"""What of a checkpoint is as large as the weights, and only for going on with a run."""

ASK_EVERY = 10
"""Batches after which several processes agree on whether to stop; one process looks after each."""


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` after every epoch, every n steps within it, and where the run is asked to stop.

    Ctrl-C and SIGTERM let the batch end first: in the midst of one, weights, statistics and schedule belong to
    different steps. A second Ctrl-C stops at once and saves nothing. Weights that are no numbers are never saved.

    Args:
        path: The checkpoint file; replaced if it is there.
        every_n_steps: Optimiser steps between two checkpoints within an epoch; 0 saves at its end only.
    """

    def __init__(self, path: str | Path, every_n_steps: int = 0) -> None:
        self.path, self.every_n_steps = Path(path), every_n_steps
        self.stopped_by: int | None = None  # the number of the signal
        self._seconds, self._since = 0.0, time.perf_counter()
        self._pending: dict[str, float] = {}
        self._saved = 0  # the step of the last checkpoint
        self._speaks = True  # one of several processes is enough

    @property
    def seconds(self) -> float:
        """Seconds trained, over all parts of the run, so far as they are in it."""
        return self._seconds + time.perf_counter() - self._since

    # -- when --

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves SIGTERM to Lightning on SLURM: it requeues there, and would call a handler that is there too."""
        if "SLURM_JOB_ID" in os.environ and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the signals that ask to stop."""
        self._saved = trainer.global_step
        if threading.current_thread() is not threading.main_thread():
            return
        self._speaks = trainer.is_global_zero
        # On SLURM Lightning requeues by another signal and passes over this one.
        passed = [signal.SIGTERM] if "SLURM_JOB_ID" in os.environ else []
        # Lightning puts the former handlers back when fit ends.
        signals.take(self._ask, [number for number in signals.ends() if number not in passed])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops between two epochs; the former has its checkpoint."""
        if self._agreed(trainer):
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where it is due, and stops where that was asked for."""
        if not _between_steps(trainer, batch_idx):
            return
        several = trainer.world_size > 1
        stop = (not several or (batch_idx + 1) % ASK_EVERY == 0) and self._agreed(trainer)
        due = self.every_n_steps > 0 and trainer.global_step - self._saved >= self.every_n_steps
        if (stop or due) and _everywhere(trainer, finite_weights(pl_module)):
            self._save(trainer, logs=trainer._logger_connector.should_update_logs)
        if stop:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, unless a weight is no finite number: the last good checkpoint stays."""
        if _everywhere(trainer, finite_weights(pl_module)):
            self._save(trainer, logs=True)

    # -- what --

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes how far metrics.csv is, so that a resumed run neither repeats a row nor leaves one out."""
        rows = [logger.rows for logger in trainer.loggers if isinstance(logger, MetricsFile)]
        checkpoint[STATE] = {"seconds": self.seconds, "rows": rows[0] if rows else 0, "pending": self._pending}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts metrics.csv back to that, and adds the row that was to come."""
        state = checkpoint.get(STATE)
        if state is None:  # of a version that did not keep it
            return
        self._seconds, self._since = float(state["seconds"]), time.perf_counter()
        if not trainer.is_global_zero:
            return
        pending = dict(state["pending"])
        step = int(pending.pop("step", 0))
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logged = logger.rewind(int(state["rows"])) > 0
                if pending:
                    logger.log_metrics(pending, step)
                    for other in trainer.loggers if not logged else ():
                        if other is not logger:
                            other.log_metrics(pending, step)

    def _save(self, trainer: pl.Trainer, logs: bool) -> None:
        self._saved = trainer.global_step
        if logs:  # Lightning hands a row to the loggers after the hooks, so it is not in metrics.csv yet
            row = {key: float(value) for key, value in trainer._logger_connector.metrics["log"].items()}
            self._pending = row and {"epoch": trainer.current_epoch, **row, "step": trainer.global_step - 1}
        trainer.save_checkpoint(self.path)
        self._pending = {}

    # -- signals --

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is None:
            self.stopped_by = number
            if self._speaks:
                signals.say("stopping after this step or validation; Ctrl-C again stops at once")
        elif number == signal.SIGINT:
            raise Stopped(self.stopped_by)

    def _agreed(self, trainer: pl.Trainer) -> bool:
        asked = self.stopped_by is not None
        return asked if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(asked, all=False)


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt` by accuracy, or another metric: the weights that were validated, without what a run goes on with.

    A run whose directory was moved still knows what its best was.
    """

    _saving = False

    def __init__(self, folder: Path, monitor: str = "val/acc", mode: str = "max") -> None:
        options: dict[str, Any] = {"enable_version_counter": False, "auto_insert_metric_name": False}
        super().__init__(folder, filename="best", monitor=monitor, mode=mode, **options)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self._saving = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self._saving = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leaves out what only `last.ckpt` needs, momentum above all: half of the file and more.

        Lightning's `save_weights_only` would leave out the hook that puts the moving average in the weights' place.
        """
        for key in GOES_ON if self._saving else ():
            checkpoint.pop(key, None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts the scores back, under where the files are now."""

        def here(path: str) -> str:
            # Its name is ours and not the file's: Lightning deletes the former best, were it "checkpoints/..".
            return str(Path(str(self.dirpath), f"{self.filename}.ckpt")) if path else ""

        state = {**state_dict, "dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = here(state[key])
        state["best_k_models"] = {here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)


def _between_steps(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether all gradients are spent, and neither a validation nor the epoch's end is about to come."""
    done = batch_idx + 1
    last = done >= trainer.num_training_batches
    check = trainer.val_check_batch
    validation = isinstance(check, int) and done % check == 0
    return not last and not validation and done % trainer.accumulate_grad_batches == 0


def _everywhere(trainer: pl.Trainer, holds: bool) -> bool:
    return holds if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(holds, all=True)
