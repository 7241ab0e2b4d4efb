"""What one looks at first when a run goes wrong: the size of the gradient, and the memory of the GPU."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.optim import Optimizer

from softgate.training.summary import GRADIENT, MEMORY


class Vitals(Callback):
    """Logs `gradient_norm` and, on a GPU, `gpu_memory_gb` after each epoch.

    The norm is the L2 norm over all weights, before it is clipped, averaged over the epoch's first step and those whose
    number is a multiple of `trainer.log_every_n_steps`. The memory is the greatest so far, in gigabytes (1e9 bytes), of
    this process's GPU. Neither changes a weight.
    """

    def __init__(self) -> None:
        self.total: torch.Tensor | float = 0.0
        self.count = 0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measures the gradient of some steps; on a GPU nothing waits for the number."""
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]  # Lightning does not annotate it
        if self.count and trainer.global_step % every:
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if grads:
            self.total = self.total + torch.nn.utils.get_total_norm(grads).detach().double()
            self.count += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the epoch's mean, and begins anew."""
        if self.count:
            pl_module.log(GRADIENT, float(self.total) / self.count, rank_zero_only=True)
        self.total, self.count = 0.0, 0
        if pl_module.device.type == "cuda":
            pl_module.log(MEMORY, torch.cuda.max_memory_allocated(pl_module.device) / 1e9, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """The sum so far, so that a run that is stopped within an epoch logs what it would have."""
        return {"total": float(self.total), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts it back."""
        self.total, self.count = float(state_dict["total"]), int(state_dict["count"])
