"""Pullback grids while training: the same probe images, read out hard and soft, over the epochs."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from softgate import grids, memory
from softgate.data import ImageData
from softgate.errors import NoCallSites, SoftgateWarning, UnreachableSites, require
from softgate.explainers.pullback import pullback
from softgate.files import folder, save_picture
from softgate.options import switched_on
from softgate.surrogate.description import caption
from softgate.surrogate.rule import Surrogate
from softgate.training.callbacks import media
from softgate.training.callbacks.config import GridsConfig
from softgate.training.callbacks.film import Film
from softgate.training.callbacks.raw import RawTensors
from softgate.training.module import SoftgateModule
from softgate.training.scales import scaled

HARD, SOFT = "hard: gradient", "soft: excitation pullback"


def read_out(
    module: SoftgateModule,
    data: ImageData,
    images: Tensor,
    labels: Tensor,
    targets: list[int],
    soft: Surrogate | None,
    **settings: Any,
) -> grids.Grid:
    """Reads a network out on probe images, hard and soft.

    Args:
        module: The trained classifier.
        data: Where the images come from; gives class names and pixel values.
        images: [B, C, H, W] as the network takes them.
        labels: [B] their classes.
        targets: The K classes to read out.
        soft: The rule of the soft read-out; None leaves it out. The hard read-out is the gradient.
        settings: Further ones of `softgate.grids.read`, such as `kind` and `chunk`.

    Returns:
        The grid.
    """
    x = images.to(module.device, next(module.net.parameters()).dtype)
    rules: dict[str, Any] = {HARD: None} | ({SOFT: soft} if soft is not None else {})
    places: dict[str, Any] = {"names": data.classes, "mean": data.mean, "std": data.std}
    with scaled(module, data, soft):
        return grids.read(module.net, x, labels.tolist(), targets, rules, **places, **settings)


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
    """Renders `grids/epoch=NNN.png` (and `.pt`, the raw tensors), and a film of one image at the end.

    Names of files count epochs from 0, as the metrics do; words in pictures from 1, as the terminal does.
    The pictures also go to W&B and TensorBoard. Training is bit-identical with and without it: a copy of the network
    runs in eval mode on fixed validation images, no random number is drawn, no `.grad` is touched. A disk that is full,
    or memory that runs out, costs pictures and gives a warning; training goes on.

    Args:
        directory: Where pictures go.
        soft: The rule of the soft read-out.
        options: What is drawn, of which images, and how often.

    Raises:
        SoftgateError: If they say that none is drawn.
    """

    def __init__(self, directory: str | Path, soft: Surrogate, options: GridsConfig) -> None:
        switched_on("callbacks.grids.every_n_epochs", options.every_n_epochs)
        self.directory, self.options = Path(directory), options
        self.soft: Surrogate | None = soft
        self.film = Film(self.directory) if options.film else None
        self.raw = RawTensors(self.directory, options.keep) if options.raw else None
        self._probe: tuple[Tensor, Tensor, list[int]] | None = None
        self._epoch, self._rendered, self._since = 0, -1, time.perf_counter()
        self._warned, self._ended = False, False

    def prepare(self, data: ImageData, module: SoftgateModule) -> None:
        """Picks the probe images and targets, and tries the read-out; what is wrong shows before training."""
        classes = min(self.options.classes, len(data.classes))
        images, labels = data.probe(classes, self.options.seed)
        extra = min(self.options.extra_targets, len(data.classes) - classes)
        self._probe = images, labels, grid_targets(labels, len(data.classes), extra, self.options.seed)
        try:
            x = images[:1].to(next(module.net.parameters()))
            with scaled(module, data, self.soft):
                pullback(module.net, x, 0, self.soft)
        except (NoCallSites, UnreachableSites) as error:
            warnings.warn(
                f"callbacks.grids: no soft read-out, the gradient alone: {error}", SoftgateWarning, stacklevel=2
            )
            self.soft = None

    def due(self, epoch: int) -> bool:
        """Whether an epoch has a grid by the cadence."""
        early = self.options.early and epoch < self.options.every_n_epochs and epoch & (epoch - 1) == 0
        return early or epoch % self.options.every_n_epochs == 0

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes up the film and the raw tensors of a run that is resumed."""
        for files in (self.film, self.raw):
            if files is not None:
                files.load(before=trainer.current_epoch)

    @rank_zero_only
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the epoch's clock, which the cost of a grid is a share of."""
        self._since = time.perf_counter()

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
        """Renders the last epoch, if it was not due, and draws the film."""
        self._ended = True
        self._render(trainer, pl_module, epoch=self._epoch, ended=True)
        if self.film is not None:
            with memory.spared(lambda why: self._left_out("there is no film", why)):
                self._draw_film(trainer, self.film)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the film of a run that was killed after its last epoch: resumed, it has nothing left to train."""
        if not self._ended:
            if self.film is not None:
                self.film.load(before=trainer.current_epoch)
            self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Which epoch was the last, and which was drawn last."""
        return {"epoch": self._epoch, "rendered": self._rendered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts that back."""
        self._epoch, self._rendered = state_dict["epoch"], state_dict["rendered"]

    def _render(self, trainer: pl.Trainer, module: Any, epoch: int | None = None, ended: bool = False) -> None:
        epoch = trainer.current_epoch if epoch is None else epoch
        last = epoch == (trainer.max_epochs or 0) - 1
        if epoch == self._rendered or not (ended or last or self.due(epoch)):
            return
        self._rendered = epoch
        started = time.perf_counter()
        with memory.spared(lambda why: self._left_out(f"epoch {epoch + 1} has no grid", why)):
            self._draw(trainer, module, epoch)
        self._log_cost(module, started, ended)

    def _draw(self, trainer: pl.Trainer, module: Any, epoch: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit(datamodule=)
        if self._probe is None:
            self.prepare(data, module)
        assert self._probe is not None
        soft = f"; soft read-out {caption(self.soft)}" if self.soft else ""
        title = f"epoch {epoch + 1}: trained with {caption(module.rule)}{soft}"
        grid = read_out(module, data, *self._probe, soft=self.soft, kind=self.options.kind, chunk=self.options.chunk)
        picture = grid.picture(title, self.options.scale)
        path = self.directory / f"epoch={epoch:03d}.png"
        try:
            folder(self.directory, parents=False)
            save_picture(picture, path)
            raw = None if self.raw is None else self.raw.add(epoch, grid.tensors(), _last_epoch(trainer))
            if self.film is not None:
                own = grid.targets.index(grid.labels[0])
                frames = {name: reading.values[0, own] for name, reading in grid.readings.items()}
                self.film.add(epoch, grid.images[0], frames, _last_epoch(trainer))
            flips = grid.flip_rates()
            media.log_grid(trainer, grid, picture, title, {f"grids/flips/{k}": v for k, v in flips.items()})
            if self.options.artifact and raw is not None:
                media.log_artifact(trainer, raw, epoch)
        except OSError as error:
            self._warn(error)

    def _log_cost(self, module: pl.LightningModule, started: float, ended: bool) -> None:
        if not ended:  # Lightning takes no values any more when training has ended
            now = time.perf_counter()
            module.log("grids/seconds", now - started, rank_zero_only=True)
            module.log("grids/share_of_epoch", (now - started) / (now - self._since), rank_zero_only=True)

    def _draw_film(self, trainer: pl.Trainer, film: Film) -> None:
        try:
            paths = film.draw(f"class '{self._film_class(trainer)}', over the epochs", self.options.scale)
            if paths:
                media.log_film(trainer, paths)
        except OSError as error:
            self._warn(error)

    def _film_class(self, trainer: pl.Trainer) -> str:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit(datamodule=)
        assert self._probe is not None
        return str(data.classes[int(self._probe[1][0])])

    def _left_out(self, what: str, why: str) -> None:
        lower = "callbacks.grids.classes, callbacks.grids.extra_targets or data.batch_size"
        message = f"callbacks.grids: {what}: {why}, with one image at a time; training goes on; set {lower} lower."
        warnings.warn(message, SoftgateWarning, stacklevel=2)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            why = str(error).rstrip(".")
            message = f"callbacks.grids: a picture could not be written to {self.directory} ({why}); training goes on."
            warnings.warn(message, SoftgateWarning, stacklevel=2)


def _last_epoch(trainer: pl.Trainer) -> int | None:
    """The last one as planned; None where something else than the number of epochs ends the run."""
    epochs = trainer.max_epochs or 0
    return epochs - 1 if epochs > 0 else None
