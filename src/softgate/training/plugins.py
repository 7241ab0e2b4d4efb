"""How checkpoints reach the disk, and what every training step is seeded with."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback

from softgate import files
from softgate.data.augment import seed_of

STEP = 2
"""What the seed is drawn for; the loader's order and augmentation have 0 and 1."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and puts it in its place when it is whole and on the disk.

    Lightning's own writes it to the temporary folder, and copies it where that is on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint; killed at any moment, it leaves the old one."""
        files.folder(Path(path).parent, parents=False)  # a run whose directory is gone is not begun anew in its place
        files.save(checkpoint, path)


class StepSeeds(Callback):
    """Seeds the random numbers of each step (dropout, mixup) by run, process, epoch and batch.

    A resumed run then draws what it would have drawn, wherever it goes on, and nothing beside training can change it.

    Args:
        seed: The run's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds torch on all devices, NumPy and Python."""
        seed = seed_of(self.seed, trainer.current_epoch, STEP, batch_idx, trainer.global_rank)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # what plugins and libraries draw from is this one
        random.seed(seed)
