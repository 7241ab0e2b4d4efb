"""Speed and progress: images per second, logged and shown, the live bar, and the same in a file for a sweep to show."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from softgate import files
from softgate.rounding import rounded


class Throughput(Callback):
    """Logs `train/images_per_second` for each epoch, over all devices, validation and callbacks left out."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts counting: a run that goes on within an epoch has no start of that epoch."""
        self._begin()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts counting anew."""
        self._begin()

    def _begin(self) -> None:
        self.images, self.seconds, self._since = 0, 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Counts the batch; the clock runs from batch end to batch end, so waiting for data is in it."""
        batch = args[1] if len(args) > 1 else kwargs["batch"]
        now = time.perf_counter()
        self.images += len(batch[0]) * trainer.world_size
        self.seconds, self._since = self.seconds + now - self._since, now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the time of validation out."""
        self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the epoch's speed."""
        pl_module.log("train/images_per_second", self.rate, rank_zero_only=True)

    @property
    def rate(self) -> float:
        """Images per second so far in this epoch."""
        return self.images / self.seconds if self.seconds else 0.0


class Pace:
    """The time that is left in a run, at its mean pace so far.

    Args:
        trainer: The trainer, about to train.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._started, self._first_step = time.perf_counter(), trainer.global_step

    def left(self, trainer: pl.Trainer) -> str | None:
        """As H:MM:SS; None before the first step."""
        done = trainer.global_step - self._first_step
        if not done:
            return None
        remaining = max(0, int(trainer.estimated_stepping_batches) - trainer.global_step)
        return str(timedelta(seconds=round(remaining * (time.perf_counter() - self._started) / done)))


def epoch_of(trainer: pl.Trainer) -> str:
    """Where training is, as all of softgate counts: "epoch 3 of 6"."""
    most = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}" + (f" of {most}" if most is not None and most > 0 else "")


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with images/s and the time left in the whole run, on one line of 80 columns."""

    def __init__(self, throughput: Throughput) -> None:
        super().__init__(leave=False)
        self._throughput = throughput
        self._pace: Pace | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of the run."""
        super().on_train_start(trainer, pl_module)
        self._pace = Pace(trainer)

    def _get_train_description(self, current_epoch: int) -> str:
        return epoch_of(self.trainer)

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        """Where it is, the bar, and batches; the time left in the epoch is not what one waits for."""
        return [TextColumn("{task.description}"), BarColumn(bar_width=8), MofNCompleteColumn()]

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Loss, accuracy, speed, and the time left at the mean pace so far."""
        items = super().get_metrics(trainer, pl_module)
        names = {"train/loss_step": "loss", "val/acc": "acc"}
        items = {names[key]: value for key, value in items.items() if key in names}
        if self._throughput.images:
            items["img/s"] = f"{self._throughput.rate:.0f}"
        left = self._pace.left(trainer) if self._pace and trainer.state.fn == "fit" else None
        if left is not None:
            items["left"] = left
        return items


class ProgressLines(Callback):
    """A plain line for each epoch, where there is no terminal to draw a bar on, or none is wanted."""

    def __init__(self) -> None:
        self._pace: Pace | None = None
        self._epoch: str | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of the run."""
        self._pace = Pace(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the line of the epoch before, all of whose figures are there by now."""
        self._say(trainer)
        self._epoch = epoch_of(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the last epoch's line."""
        self._say(trainer)

    def _say(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or self._pace is None or self._epoch is None:
            return
        values = trainer.callback_metrics
        known = {"loss": "train/loss", "val loss": "val/loss", "val acc": "val/acc"}
        shown = [f"{name} {rounded(float(values[key]))}" for name, key in known.items() if key in values]
        speed = values.get("train/images_per_second")
        shown += [] if speed is None else [f"{float(speed):,.0f} images/s"]
        left = self._pace.left(trainer)
        shown += [] if left is None or trainer.should_stop else [f"{left} left"]
        print(f"{self._epoch}: {', '.join(shown)}", flush=True)


class ProgressFile(Callback):
    """Writes how far a job of a sweep is into a file, at most once in `interval` seconds; the sweep shows it.

    Args:
        path: The file: a JSON object with what the bar shows.
        throughput: Counts the images.
        interval: Seconds between two writings.
    """

    def __init__(self, path: str | Path, throughput: Throughput, interval: float = 1.0) -> None:
        self.path, self.interval = Path(path), interval
        self._throughput = throughput
        self._pace: Pace | None = None
        self._written = float("-inf")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of the run."""
        self._pace = Pace(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Writes, where it is time to."""
        now = time.perf_counter()
        if not trainer.is_global_zero or self._pace is None or now - self._written < self.interval:
            return
        self._written = now
        values = trainer.progress_bar_metrics
        shown = {
            "epoch": epoch_of(trainer),
            "step": f"{trainer.global_step}/{trainer.estimated_stepping_batches}",
            "loss": _rounded(values.get("train/loss_step")),
            "val acc": _rounded(values.get("val/acc")),
            "img/s": f"{self._throughput.rate:.0f}",
            "left": self._pace.left(trainer),
        }
        files.write_json(shown, self.path)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the file away: `metrics.csv` has it all now."""
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)


def _rounded(value: Any) -> str | None:
    return None if value is None else rounded(float(value))


PROGRESS = "progress.json"
"""How far a job of a sweep is, in its directory."""
