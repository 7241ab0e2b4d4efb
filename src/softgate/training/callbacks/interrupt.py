"""What an interrupted run leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging

from softgate.errors import CannotWrite, Diverged
from softgate.training.callbacks.guard import finite_weights


class MovingAverage(EMAWeightAveraging):
    """Lightning's moving average of the weights, right also where validation is interrupted.

    While validating, the average stands in the network and the trained weights in the average's place; an exception
    there would have the two saved the wrong way round.
    """

    _swapped = False

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the average into the network."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = self._average_model is not None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the trained weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Puts the trained weights back before anything is saved."""
        if self._swapped:
            self.on_validation_epoch_end(trainer, pl_module)


class SaveOnException(Callback):
    """Saves the weights as they are when training ends by an error; never ones that are no numbers.

    For looking into, and not to go on from: the error may have come in the midst of a step. `LastCheckpoint` saves what
    a run goes on from. Nothing is saved by one of several processes, as saving takes them all. Lightning's own
    `OnExceptionCheckpoint` makes every `fit` look for its file and warn.

    Args:
        path: The checkpoint file; replaced if it is there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Saves, if training had begun."""
        stopped = isinstance(exception, (CannotWrite, Diverged, KeyboardInterrupt))
        if stopped or trainer.world_size > 1 or trainer.state.fn != "fit":
            return
        if trainer.global_step > 0 and finite_weights(pl_module):
            trainer.save_checkpoint(self.path)
