"""The divergence guard: a run that can only produce nonsense ends with one sentence."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from softgate.errors import Diverged
from softgate.options import switched_on
from softgate.surrogate.description import sentence
from softgate.training.callbacks.config import GuardConfig
from softgate.training.module import SoftgateModule


def finite_weights(module: nn.Module) -> bool:
    """Whether every parameter and buffer is a finite number; waits for the device once."""
    tensors = [t.detach() for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    return not tensors or bool(torch.stack([t.isfinite().all() for t in tensors]).all())


class DivergenceGuard(Callback):
    """Raises `Diverged` where the training loss is no finite number, or exceeds a limit.

    The first bad loss is remembered on the device and read every n steps, before each validation and at the end of each
    epoch, so that no step waits for it. There the weights are tested too: the last step of an epoch may have spoilt
    them without a loss to show it. All of that comes before a checkpoint is written.

    Args:
        options: What is let pass, and how often it is looked.
    """

    def __init__(self, options: GuardConfig) -> None:
        self.every_n_steps = switched_on("callbacks.guard.every_n_steps", options.every_n_steps)
        self.limit = math.inf if options.max_loss is None else float(options.max_loss)
        self._first: Tensor | None = None  # [2]: step and value of the first bad loss; the step is -1 before one

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes note of a bad loss, without waiting for the device."""
        loss = outputs["loss"].detach().float() * trainer.accumulate_grad_batches  # Lightning has divided by it
        if self._first is None:
            self._first = torch.tensor([-1.0, 0.0], dtype=loss.dtype, device=loss.device)
        bad = ~torch.isfinite(loss) | (loss > self.limit)
        seen = torch.stack([torch.full_like(loss, trainer.global_step), loss])
        self._first = torch.where(bad & (self._first[0] < 0), seen, self._first)
        if (batch_idx + 1) % self.every_n_steps == 0:
            self._read(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads before a validation that could make nonsense the best checkpoint."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._read(trainer, pl_module, weights=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads before the epoch's checkpoint."""
        self._read(trainer, pl_module, weights=True)

    def _read(self, trainer: pl.Trainer, module: Any, weights: bool = False) -> None:
        if self._first is None:
            return
        every = self._first.new_zeros(trainer.world_size, 3)
        every[trainer.global_rank, :2] = self._first
        every[trainer.global_rank, 2] = float(weights and not finite_weights(module))
        seen = trainer.strategy.reduce(every, reduce_op="sum").tolist()  # all end together, with the same words
        bad = [(step, loss, rank) for rank, (step, loss, _) in enumerate(seen) if step >= 0]
        spoilt = any(flag for _, _, flag in seen)
        if bad:
            step, loss, rank = min(bad, key=lambda each: each[0])
            over = f" (callbacks.guard.max_loss={self.limit:g})" if math.isfinite(loss) else ""
            where = f" of rank {rank}" if len(seen) > 1 else ""
            what = f"at step {int(step)} the training loss{where} was {loss:.3g}{over}"
        elif spoilt:
            what = f"at step {trainer.global_step} a weight is no finite number any more"
        else:
            return
        raise Diverged(f"training diverged: {what}, {_circumstances(module)}; {_advice(module)}")


def _circumstances(module: SoftgateModule) -> str:
    rule = module.sites.rule
    rate = getattr(module.optim, "lr", None)
    lr = "" if rate is None else f" and optim.lr={rate:g}"
    return f"under {'the true gradient' if rule is None else sentence(rule)}{lr}"


def _advice(module: SoftgateModule) -> str:
    rule = module.sites.rule
    tries = ["a lower optim.lr", "trainer.gradient_clip_val=1"]
    if rule is not None and rule.soft:
        tries += ["schedule=warmup"] if rule.gain == "matched" else ["surrogate.gain=matched", "schedule=warmup"]
    return f"try {', '.join(tries[:-1])} or {tries[-1]}."
