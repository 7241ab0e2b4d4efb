"""From a composed config to objects: data, module, loggers, callbacks, trainer. The only place that does so."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from softgate import targets
from softgate.data import ImageData
from softgate.errors import SoftgateError, require
from softgate.explainers.completion import completed_for
from softgate.training import SoftgateModule, given_gates, networks, tracking
from softgate.training.callbacks import (
    AlignmentCurves,
    BestCheckpoint,
    DivergenceGuard,
    LastCheckpoint,
    MovingAverage,
    PathRecorder,
    ProgressBar,
    ProgressFile,
    ProgressLines,
    PullbackGrids,
    SaveOnException,
    SiteDiagnostics,
    Throughput,
    Vitals,
)
from softgate.training.callbacks.config import CheckpointConfig
from softgate.training.callbacks.progress import PROGRESS
from softgate.training.config import TrainConfig
from softgate.training.metricsfile import MetricsFile
from softgate.training.plugins import StepSeeds, WholeCheckpoints


def _evaluator(path: str | None) -> SoftgateModule | None:
    """Another run's module, to judge counterfactuals."""
    if path is None:
        return None
    from softgate.training.checkpoints import restore  # imports this module

    return restore(Path(path).expanduser())[0].eval()


def data(config: TrainConfig) -> ImageData:
    """The data module of `data=`."""
    return ImageData(config.data, seed=config.seed)


def module(config: TrainConfig, images: ImageData) -> SoftgateModule:
    """The LightningModule of `model=`, `surrogate=` and `optim=`, with its weights loaded."""
    found = len(images.classes)
    classes = config.model.plain.get("num_classes")
    fits = classes is None or classes == found
    require(fits, f"model.num_classes={classes}: the data has {found} classes; leave it null or set {found}.")
    architecture = networks.of_run(config.model, images.size, config.data.channels)
    built = SoftgateModule(
        model=architecture,
        surrogate=config.surrogate.to_dict(),
        classes=images.classes,
        optim=config.optim.plain,
        channels_last=config.channels_last,
        compile=config.compile,
        metrics=config.metrics,
        gates_from=None if config.gates_from.run is None else config.gates_from.plain,
        robust=_robust(config, images) if config.train.on else None,
    )
    built.found = networks.begin_with(built.net, config.model, images.identity)
    networks.check_output(built.net, str(architecture["name"]), images.size, config.data.channels, found)
    if config.gates_from.run is not None:
        given_gates.begin(built, config.gates_from, images.size, config.data.channels)
    return built


def _robust(config: TrainConfig, images: ImageData) -> dict[str, Any]:
    return {"options": config.train.plain, "mean": images.mean, "std": images.std, "size": images.size}


def readout(config: TrainConfig, module: SoftgateModule, size: int) -> tuple[TrainConfig, str | None]:
    """The config with its read-out completed for the network, see `completed_for`; and what was added, in a sentence.

    Args:
        config: The config.
        module: The network.
        size: Of its images, in pixels.
    """
    image = torch.zeros(1, config.data.channels, size, size, device=module.device)
    rule, why = completed_for(module.net, config.readout, image)
    return config.model_copy(update={"readout": rule}), why


def loggers(config: TrainConfig, directory: Path, step: int | None = None) -> list[Logger]:
    """CSV always; TensorBoard and W&B where `logger=` names them.

    Args:
        config: The config.
        directory: The run's directory.
        step: Where a resumed run goes on: TensorBoard hides what an earlier part wrote beyond.
    """
    made: list[Logger] = [MetricsFile(directory / "metrics.csv")]
    if config.logger.tensorboard:
        made.append(TensorBoardLogger(directory, name="tensorboard", version="", purge_step=step))
    for name, given in config.logger.own.items():
        targets.check_trusted(given, f"logger.{name}")
        made.append(targets.make(given, f"logger.{name}", Logger, save_dir=str(directory)))
    if config.logger.wandb is not None:
        group = None if config.sweep.name is None else str(config.sweep.name)
        made.append(tracking.logger(config.logger.wandb, config, directory, group, config.resume))
    return made


def callbacks(config: TrainConfig, directory: Path) -> list[Callback]:
    """Speed, progress, guard, diagnostics, grids, moving average and checkpoints, in the order they must run."""
    options, dry = config.callbacks, bool(config.trainer.fast_dev_run)
    speed = Throughput()
    made: list[Callback] = [StepSeeds(config.seed), speed, Vitals()]
    if config.trainer.enable_progress_bar and sys.stdout.isatty():
        made.append(ProgressBar(speed))
    else:
        made.append(ProgressLines())
    if config.sweep.job is not None:
        made.append(ProgressFile(directory / PROGRESS, speed))
    if options.guard.every_n_steps:  # before anything is saved
        made.append(DivergenceGuard(options.guard))
    if options.diagnostics.every_n_epochs and not dry:
        made.append(SiteDiagnostics(directory / "diagnostics.csv", options.diagnostics))
    if options.grids.every_n_epochs and not dry:
        made.append(PullbackGrids(directory / "grids", config.readout, options.grids))
    if options.alignment.every_n_epochs and not dry:
        judge = _evaluator(options.alignment.evaluator)
        made.append(AlignmentCurves(config.readout, options.alignment, judge))
    if options.paths.recordings and not dry:
        if options.paths.probe != "train":
            made.append(PathRecorder(directory / "paths", config.readout, options.paths))
        if options.paths.probe != "val":
            made.append(PathRecorder(directory / "paths-train", config.readout, options.paths, "train"))
    if config.ema is not None:
        made.append(MovingAverage(decay=config.ema))  # after the grids: they show what was validated
    for name, given in options.own.items():
        targets.check_trusted(given, f"callbacks.{name}")
        made.append(targets.make(given, f"callbacks.{name}", Callback))
    if config.trainer.enable_checkpointing is not False and not dry:
        made += checkpoints(directory / "checkpoints", options.checkpoint)
    return made


def checkpoints(folder: Path, options: CheckpointConfig) -> list[Callback]:
    """`last.ckpt` to go on from, `best.ckpt` by what is monitored, `exception.ckpt` for looking into an error."""
    return [
        BestCheckpoint(folder, options.monitor, options.mode),
        SaveOnException(folder / "exception.ckpt"),
        LastCheckpoint(folder / "last.ckpt", options.every_n_steps),  # the last of all: everything else is in it
    ]


def trainer(config: TrainConfig, directory: Path, step: int | None = None) -> pl.Trainer:
    """Lightning's Trainer of `trainer=`.

    Args:
        config: The config.
        directory: The run's directory.
        step: The optimiser step that a resumed run goes on from.

    Raises:
        SoftgateError: If Lightning refuses an option; the message is Lightning's first sentence.
    """
    given, options = config.trainer, config.trainer.plain
    if config.gates_from.run is not None:
        options["max_epochs"] = given.max_epochs - given_gates.whole_epochs(config.gates_from)
    if given.sync_batchnorm == "auto":
        several = torch.cuda.device_count() > 1 or given.num_nodes > 1
        options["sync_batchnorm"] = given.accelerator != "cpu" and torch.cuda.is_available() and several
    if given.barebones:
        off = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "log_every_n_steps")
        options |= dict.fromkeys((*off, "num_sanity_val_steps")) | {"logger": False}
    else:
        options |= {"logger": loggers(config, directory, step), "callbacks": callbacks(config, directory)}
    options["enable_progress_bar"] = given.enable_progress_bar and sys.stdout.isatty()
    options["plugins"] = [WholeCheckpoints(), *_plugins(given.plugins)]
    with phrasing_lightnings_refusals():
        made = pl.Trainer(**options, default_root_dir=directory)
    for logger in made.loggers:
        if isinstance(logger, WandbLogger):
            tracking.start(logger)
    return made


def _plugins(given: Any) -> list[Any]:
    made = []
    for each in given if isinstance(given, list) else [given] if given else []:
        if isinstance(each, dict):
            targets.check_trusted(each, "trainer.plugins")
            each = targets.make(each, "trainer.plugins", None)
        made.append(each)
    return made


@contextmanager
def phrasing_lightnings_refusals() -> Iterator[None]:
    """Turns Lightning's complaints about the Trainer's options into a `SoftgateError`."""
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError) as error:
        if isinstance(error, SoftgateError):
            raise
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, MisconfigurationException) or re.search(
            r"(pytorch_lightning|lightning_fabric)/", raised_in
        ):
            raise SoftgateError(f"trainer: {error}") from error
        raise
