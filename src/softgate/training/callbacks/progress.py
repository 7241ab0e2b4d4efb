"""Speed and progress: images per second, logged and shown, and the live bar."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar


class Throughput(Callback):
    """Logs `train/images_per_second` for each epoch, over all devices, validation and callbacks left out."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._since = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts counting anew."""
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


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with images/s and the time left in the whole run."""

    def __init__(self, throughput: Throughput) -> None:
        super().__init__(leave=False)
        self._throughput = throughput
        self._started = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of the run."""
        super().on_train_start(trainer, pl_module)
        self._started, self._first_step = time.perf_counter(), trainer.global_step

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Loss, accuracy, speed, and the time left at the mean pace so far."""
        items = super().get_metrics(trainer, pl_module)
        names = {"train/loss_step": "loss", "val/acc": "val acc"}
        items = {names[key]: value for key, value in items.items() if key in names}
        if self._throughput.images:
            items["img/s"] = f"{self._throughput.rate:.0f}"
        done = trainer.global_step - self._first_step
        if done and trainer.state.fn == "fit":
            remaining = max(0, int(trainer.estimated_stepping_batches) - trainer.global_step)
            left = remaining * (time.perf_counter() - self._started) / done
            items["left"] = str(timedelta(seconds=round(left)))
        return items
