"""Pullback grids while training: the same probe images, read out hard and soft, after every epoch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from softgate.data import ImageData
from softgate.errors import NoCallSites, SoftgateWarning, UnreachableSites, require
from softgate.figures import pullback_grid
from softgate.pullback import pullback
from softgate.surrogate import Surrogate
from softgate.training.module import SoftgateModule
from softgate.training.scales import scaled


def read_out(
    module: SoftgateModule,
    data: ImageData,
    images: Tensor,
    labels: Tensor,
    targets: list[int],
    soft: Surrogate | None,
    title: str,
) -> tuple[Image.Image, dict[str, Any]]:
    """Reads a network out on probe images, hard and soft.

    Args:
        module: The trained classifier.
        data: Where the images come from; gives class names and pixel values.
        images: [B, 3, H, W] as the network takes them.
        labels: [B] their classes.
        targets: The K classes to read out.
        soft: The rule of the soft read-out; None leaves it out. The hard read-out is the gradient.
        title: A line above the picture.

    Returns:
        The grid, and its raw tensors as plain data: images, labels, targets, and the pullbacks [B, K, 3, H, W].
    """
    x = images.to(module.device, next(module.net.parameters()).dtype)
    blocks = {"hard: gradient": pullback(module.net, x, targets, None).float().cpu()}
    if soft is not None:
        with scaled(module, data, soft):
            blocks["soft: excitation pullback"] = pullback(module.net, x, targets, soft).float().cpu()
    names = data.classes
    picture = pullback_grid(
        data.denormalize(images),
        blocks,
        rows=[names[i] for i in labels.tolist()],
        columns=[names[i] for i in targets],
        labels=labels.tolist(),
        targets=targets,
        title=title,
    )
    raw: dict[str, Any] = {"images": images, "labels": labels, "targets": targets}
    raw |= {name.partition(":")[0]: block for name, block in blocks.items()}
    return picture, raw | {"rule": soft.to_dict() if soft else None}


def grid_targets(labels: Tensor, classes: int, extra: int, seed: int) -> list[int]:
    """The classes of the images and `extra` more, drawn once by `seed` from the rest (paper 5.1)."""
    own = labels.tolist()
    others = [c for c in range(classes) if c not in own]
    require(
        0 <= extra <= len(others),
        f"callbacks.grids.extra_targets={extra}: there are {len(others)} classes beside those of the images.",
    )
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()
    return own + sorted(others[i] for i in order[:extra])


class PullbackGrids(Callback):
    """Renders `grids/epoch=NNN.png` (and `.pt`, the raw tensors) after every n-th epoch.

    The pictures also go to every logger that takes images. Training is bit-identical with and without it: the
    network runs in eval mode on fixed validation images, no random number is drawn, no `.grad` is touched.

    Args:
        directory: Where pictures go.
        soft: The rule of the soft read-out, as plain data.
        every_n_epochs: Epochs between two grids; the last epoch always has one.
        classes: Rows: one image of each of so many classes.
        extra_targets: Columns beside the classes of the rows.
        seed: Picks the probe images.
        raw: Save the raw tensors too.
    """

    def __init__(
        self,
        directory: str | Path,
        soft: Mapping[str, Any],
        every_n_epochs: int = 1,
        classes: int = 5,
        extra_targets: int = 1,
        seed: int = 314,
        raw: bool = True,
    ) -> None:
        for key, value, least in (
            ("every_n_epochs", every_n_epochs, 1),
            ("classes", classes, 1),
            ("extra_targets", extra_targets, 0),
            ("seed", seed, 0),
        ):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            require(whole, f"callbacks.grids.{key}={value}: a whole number >= {least} is needed.")
        self.directory = Path(directory)
        self.soft: Surrogate | None = Surrogate.from_dict(soft)
        self.every_n_epochs = every_n_epochs
        self.classes, self.extra_targets, self.seed, self.raw = classes, extra_targets, seed, raw
        self._probe: tuple[Tensor, Tensor, list[int]] | None = None
        self._epoch, self._rendered = 0, -1

    def prepare(self, data: ImageData, module: SoftgateModule) -> None:
        """Picks the probe images and targets, and tries the read-out; what is wrong shows before training."""
        classes = min(self.classes, len(data.classes))
        images, labels = data.probe(classes, self.seed)
        extra = min(self.extra_targets, len(data.classes) - classes)
        self._probe = images, labels, grid_targets(labels, len(data.classes), extra, self.seed)
        try:
            x = images[:1].to(next(module.net.parameters()))
            with scaled(module, data, self.soft):
                pullback(module.net, x, 0, self.soft)
        except (NoCallSites, UnreachableSites) as error:
            warnings.warn(
                f"callbacks.grids: no soft read-out, the gradient alone: {error}", SoftgateWarning, stacklevel=2
            )
            self.soft = None

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Renders after the epoch's validation, with the weights that were validated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._render(trainer, pl_module)

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Renders in epochs without validation."""
        self._render(trainer, pl_module)
        self._epoch = trainer.current_epoch

    @rank_zero_only
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Renders the last epoch, if it was not due."""
        self._render(trainer, pl_module, epoch=self._epoch, due=True)

    def _render(self, trainer: pl.Trainer, module: Any, epoch: int | None = None, due: bool = False) -> None:
        epoch = trainer.current_epoch if epoch is None else epoch
        last = epoch == (trainer.max_epochs or 0) - 1
        if epoch == self._rendered or not (due or last or epoch % self.every_n_epochs == 0):
            return
        self._rendered = epoch
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit(datamodule=)
        if self._probe is None:
            self.prepare(data, module)
        assert self._probe is not None
        soft = f"; soft read-out {_describe(self.soft)}" if self.soft else ""
        title = f"epoch {epoch}: trained with {_describe(module.rule)}{soft}"
        picture, raw = read_out(module, data, *self._probe, soft=self.soft, title=title)
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"epoch={epoch:03d}.png"
        picture.save(path)
        if self.raw:
            torch.save(raw, path.with_suffix(".pt"))
        _log_picture(trainer, picture, f"epoch {epoch}")


def _describe(rule: Surrogate) -> str:
    return repr(rule.gate).replace("temperature=", "T=") if rule.softens_relu else "hard gates"


def _log_picture(trainer: pl.Trainer, picture: Image.Image, caption: str) -> None:
    step = trainer.global_step - 1  # the step Lightning gives the epoch's metrics, so that sliders line up
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image("grids/pullbacks", [picture], step=step, caption=[caption])
        elif isinstance(logger, TensorBoardLogger):
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            pixels = pixels.view(picture.height, picture.width, 3)
            logger.experiment.add_image("grids/pullbacks", pixels, step, dataformats="HWC")
