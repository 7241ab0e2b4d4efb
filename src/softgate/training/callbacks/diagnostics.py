"""Diagnostics while training: what the rule does to the gradient at each call site, epoch by epoch."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from softgate import files, memory
from softgate.data import ImageData
from softgate.errors import SoftgateWarning
from softgate.options import switched_on
from softgate.sites.diagnostics import SiteDiagnosis, diagnose, revived
from softgate.training.callbacks.config import DiagnosticsConfig
from softgate.training.metricsfile import keep
from softgate.training.module import SoftgateModule
from softgate.training.probe import spread

COLUMNS = ("epoch", "site", "kind", "cosine", "norm_ratio", "gate_mean", "dead", "revived")
MEDIANS = ("cosine", "norm_ratio", "gate_mean", "dead")


class SiteDiagnostics(Callback):
    """Writes `diagnostics.csv` after every n-th epoch, and logs medians over the call sites.

    The same validation images every time, in train mode as in a training step, with the rule of that moment and the
    criterion of training. `sites/cosine`, `sites/norm_ratio`, `sites/gate_mean` and `sites/dead` are medians,
    `sites/revived` is the number of units of the whole network that were dead the time before and are alive now.
    Training is bit-identical with and without it; see `softgate.diagnose`.

    Args:
        path: The CSV file; a resumed run adds to it.
        options: How often, and at which images.
    """

    def __init__(self, path: str | Path, options: DiagnosticsConfig) -> None:
        switched_on("callbacks.diagnostics.every_n_epochs", options.every_n_epochs)
        self.path, self.options = Path(path), options
        self._probe: tuple[Tensor, Tensor] | None = None
        self._before: list[SiteDiagnosis] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Picks the probe; a run from the beginning starts a new file, a resumed one drops what it will write again."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit(datamodule=)
        assert isinstance(data, ImageData)
        self._probe = spread(data, self.options.images, self.options.seed)
        if trainer.is_global_zero:
            keep(self.path, before=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks, on every process alike: synchronised BatchNorm needs all of them."""
        if trainer.current_epoch % self.options.every_n_epochs == 0:
            assert isinstance(pl_module, SoftgateModule)
            together = any(isinstance(each, nn.SyncBatchNorm) for each in pl_module.modules())
            # Where others wait within a forward pass for this process, none can leave it out alone.
            with nullcontext() if together else memory.spared(lambda why: _left_out(trainer.current_epoch, why)):
                self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, module: SoftgateModule) -> None:
        assert self._probe is not None
        rule = module.sites.rule
        assert rule is not None
        weight = next(module.net.parameters())
        layout = torch.channels_last if module.channels_last else torch.contiguous_format
        images, labels = self._probe
        x = images.to(weight.device, weight.dtype).contiguous(memory_format=layout)
        labels = labels.to(weight.device)
        found = diagnose(module.net, x, lambda logits: module.criterion(logits, labels), rule)
        alive = revived(self._before, found)
        self._before = found
        if trainer.is_global_zero:
            self._write(trainer.current_epoch, found, alive)
        for key in MEDIANS:
            _log(module, key, _median(getattr(site, key) for site in found))
        if alive:
            _log(module, "revived", float(sum(alive.values())))

    def _write(self, epoch: int, found: list[SiteDiagnosis], alive: dict[str, int]) -> None:
        made = [
            {"epoch": epoch, "site": site.name, "revived": alive.get(site.name, ""), **asdict(site)} for site in found
        ]
        files.append_csv(made, self.path, COLUMNS)

    def state_dict(self) -> dict[str, Any]:
        """The last look, so that a resumed run knows which units were dead."""
        return {"before": [asdict(site) for site in self._before]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts it back."""
        self._before = [SiteDiagnosis(**site) for site in state_dict["before"]]


def _left_out(epoch: int, why: str) -> None:
    said = (
        f"callbacks.diagnostics: epoch {epoch + 1} has none: {why}; training goes on; set callbacks.diagnostics.images"
    )
    warnings.warn(f"{said} or data.batch_size lower.", SoftgateWarning, stacklevel=2)


def _median(values: Iterable[float]) -> float:
    defined = [value for value in values if math.isfinite(value)]
    return statistics.median(defined) if defined else math.nan


def _log(module: pl.LightningModule, key: str, value: float) -> None:
    if math.isfinite(value):
        module.log(f"sites/{key}", value, rank_zero_only=True)
