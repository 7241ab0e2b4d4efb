"""Pullback grids while training: the same probe images, read out hard and soft, over the epochs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from softgate import grids
from softgate.data import ImageData
from softgate.errors import NoCallSites, SoftgateWarning, UnreachableSites, is_whole, require, unknown
from softgate.explainers.pullback import pullback
from softgate.files import save, save_picture
from softgate.surrogate.rule import Surrogate
from softgate.training.callbacks import media
from softgate.training.callbacks.film import Film
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
        images: [B, 3, H, W] as the network takes them.
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

    The pictures also go to W&B and TensorBoard. Training is bit-identical with and without it: a copy of the network
    runs in eval mode on fixed validation images, no random number is drawn, no `.grad` is touched. A disk that is full
    costs pictures and gives one warning; training goes on.

    Args:
        directory: Where pictures go.
        soft: The rule of the soft read-out, as plain data.
        every_n_epochs: Epochs between two grids; the last epoch always has one.
        early: Before the n-th epoch, also after the epochs 0, 1, 2, 4, 8, ..., in which a network changes most.
        classes: Rows: one image of each of so many classes.
        extra_targets: Columns beside the classes of the rows.
        seed: Picks the probe images.
        kind: "raw", the pullbacks, or "ascent", what gradient ascent along them makes of the images.
        scale: "cell", "shared" or "seismic", see `softgate.figures.pullback_grid`; the film's scale too.
        chunk: At most so many images at once, see `softgate.pullback`.
        raw: Save the raw tensors too.
        film: Draw the first probe image's pullbacks over training, `film.png` and `film.gif`, when training ends.
        artifact: Upload the raw tensors to W&B.
    """

    def __init__(
        self,
        directory: str | Path,
        soft: Mapping[str, Any],
        every_n_epochs: int = 1,
        early: bool = True,
        classes: int = 5,
        extra_targets: int = 1,
        seed: int = 314,
        kind: str = "raw",
        scale: str = "cell",
        chunk: int | None = None,
        raw: bool = True,
        film: bool = True,
        artifact: bool = False,
    ) -> None:
        for key, value, least in (
            ("every_n_epochs", every_n_epochs, 1),
            ("classes", classes, 1),
            ("extra_targets", extra_targets, 0),
            ("seed", seed, 0),
            *((("chunk", chunk, 1),) if chunk is not None else ()),
        ):
            whole = is_whole(value, least)
            require(whole, f"callbacks.grids.{key}={value}: a whole number >= {least} is needed.")
        for key, flag in (("early", early), ("raw", raw), ("film", film), ("artifact", artifact)):
            require(isinstance(flag, bool), f"callbacks.grids.{key}={flag}: true or false is needed.")
        for key, word, known in (("kind", kind, grids.KINDS), ("scale", scale, grids.SCALES)):
            if word not in known:
                raise unknown(f"callbacks.grids.{key}", word, known)
        require(raw or not artifact, "callbacks.grids.artifact=true: callbacks.grids.raw=true is needed too.")
        self.directory = Path(directory)
        self.soft: Surrogate | None = Surrogate.from_dict(soft)
        self.every_n_epochs, self.early = every_n_epochs, early
        self.classes, self.extra_targets, self.seed = classes, extra_targets, seed
        self.kind, self.scale, self.chunk, self.raw, self.artifact = kind, scale, chunk, raw, artifact
        self.film = Film(self.directory) if film else None
        self._probe: tuple[Tensor, Tensor, list[int]] | None = None
        self._epoch, self._rendered, self._since = 0, -1, time.perf_counter()
        self._warned, self._ended = False, False

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

    def due(self, epoch: int) -> bool:
        """Whether an epoch has a grid by the cadence."""
        early = self.early and epoch < self.every_n_epochs and epoch & (epoch - 1) == 0
        return early or epoch % self.every_n_epochs == 0

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes up the film of a run that is resumed."""
        if self.film is not None:
            self.film.load(before=trainer.current_epoch)

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
            try:
                paths = self.film.draw(f"class '{self._film_class(trainer)}', over the epochs", self.scale)
                if paths:
                    media.log_film(trainer, paths)
            except OSError as error:
                self._warn(error)

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
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit(datamodule=)
        if self._probe is None:
            self.prepare(data, module)
        assert self._probe is not None
        soft = f"; soft read-out {_describe(self.soft)}" if self.soft else ""
        caption = f"epoch {epoch}: trained with {_describe(module.rule)}{soft}"
        grid = read_out(module, data, *self._probe, soft=self.soft, kind=self.kind, chunk=self.chunk)
        picture = grid.picture(caption, self.scale)
        path = self.directory / f"epoch={epoch:03d}.png"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            save_picture(picture, path)
            if self.raw:
                save(grid.tensors(), path.with_suffix(".pt"))
            if self.film is not None:
                own = grid.targets.index(grid.labels[0])
                frames = {name: reading.values[0, own] for name, reading in grid.readings.items()}
                self.film.add(epoch, grid.images[0], frames)
            flips = grid.flip_rates()
            media.log_grid(trainer, grid, picture, caption, {f"grids/flips/{k}": v for k, v in flips.items()})
            if self.artifact:
                media.log_artifact(trainer, path.with_suffix(".pt"), epoch)
        except OSError as error:
            self._warn(error)
        self._log_cost(module, started, ended)

    def _log_cost(self, module: pl.LightningModule, started: float, ended: bool) -> None:
        if not ended:  # Lightning takes no values any more when training has ended
            now = time.perf_counter()
            module.log("grids/seconds", now - started, rank_zero_only=True)
            module.log("grids/share_of_epoch", (now - started) / (now - self._since), rank_zero_only=True)

    def _film_class(self, trainer: pl.Trainer) -> str:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit(datamodule=)
        assert self._probe is not None
        return str(data.classes[int(self._probe[1][0])])

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            message = (
                f"callbacks.grids: a picture could not be written to {self.directory} ({error}); training goes on."
            )
            warnings.warn(message, SoftgateWarning, stacklevel=2)


def _describe(rule: Surrogate) -> str:
    return repr(rule.gate).replace("temperature=", "T=") if rule.softens_relu else "hard gates"
