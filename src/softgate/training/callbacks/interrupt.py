"""What an interrupted run leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class SaveOnException(Callback):
    """Saves a checkpoint when training ends by Ctrl-C or an exception.

    Lightning's own `OnExceptionCheckpoint` does this too, but makes every `fit` look for its file and warn.

    Args:
        path: The checkpoint file; replaced if it is there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Saves, if training had begun."""
        if trainer.state.fn == "fit" and trainer.global_step > 0:
            trainer.save_checkpoint(self.path)
