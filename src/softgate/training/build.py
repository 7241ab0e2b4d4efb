"""From a composed config to objects: data, module, loggers, callbacks, trainer. The only place that does so."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from softgate import models
from softgate.data import ImageData
from softgate.errors import SoftgateError, require
from softgate.surrogate.rule import Surrogate
from softgate.training import SoftgateModule, config, tracking
from softgate.training.callbacks import (
    AlignmentCurves,
    BestCheckpoint,
    DivergenceGuard,
    LastCheckpoint,
    MovingAverage,
    PathRecorder,
    ProgressBar,
    ProgressFile,
    PullbackGrids,
    SaveOnException,
    SiteDiagnostics,
    Throughput,
)
from softgate.training.callbacks.progress import PROGRESS
from softgate.training.metricsfile import MetricsFile
from softgate.training.plugins import StepSeeds, WholeCheckpoints

Config = Mapping[str, Any]


def check(cfg: Config) -> None:
    """Raises `SoftgateError` for what is wrong in a config, before any data is loaded."""
    config.check(cfg)
    _check_alignment(dict(cfg["callbacks"]["alignment"]), cfg["readout"])
    _watchers(cfg, Path())
    _path_recorder(cfg, Path())
    checkpoints(Path(), **cfg["callbacks"]["checkpoint"])


def _check_alignment(options: dict[str, Any], readout: Config) -> None:
    """Raises `SoftgateError` for wrong options of `callbacks.alignment`; builds no network."""
    evaluator = options.pop("evaluator")
    if options["every_n_epochs"]:
        AlignmentCurves(readout, **options)
        fine = evaluator is None or Path(str(evaluator)).expanduser().is_file()
        require(fine, f"callbacks.alignment.evaluator={evaluator}: there is no such file; a checkpoint is needed.")


def _evaluator(path: str | None) -> torch.nn.Module | None:
    """The network of another run's checkpoint, to judge counterfactuals."""
    if path is None:
        return None
    from softgate.training.checkpoints import restore  # imports this module

    return restore(Path(path).expanduser())[0].net.eval()


def data(cfg: Config) -> ImageData:
    """The data module of `data=`."""
    return ImageData(cfg["data"], seed=cfg["seed"])


def module(cfg: Config, images: ImageData) -> SoftgateModule:
    """The LightningModule of `model=`, `surrogate=` and `optim=`, with its weights loaded."""
    options = cfg["model"]
    name, weights, found = str(options["name"]), options["weights"], len(images.classes)
    classes = options["num_classes"]
    fits = classes is None or classes == found
    require(fits, f"model.num_classes={classes}: the data has {found} classes; leave it null or set {found}.")
    stem = models.resolve_stem(str(options["stem"]), images.size, weights)
    built = SoftgateModule(
        model={"name": name, "stem": stem, "transform_input": models.needs_transformed_input(name, weights)},
        surrogate=Surrogate.from_dict(cfg["surrogate"]).to_dict(),
        classes=images.classes,
        optim=dict(cfg["optim"]),
        channels_last=cfg["channels_last"],
        compile=cfg["compile"],
    )
    if weights is not None:
        models.load_weights(built.net, name, str(weights), found, bool(options["new_head"]))
    models.check_size(built.net, name, images.size)
    return built


def loggers(cfg: Config, directory: Path, step: int | None = None) -> list[Logger]:
    """CSV always; TensorBoard and W&B where `logger=` names them.

    Args:
        cfg: The config.
        directory: The run's directory.
        step: Where a resumed run goes on: TensorBoard hides what an earlier part wrote beyond.
    """
    made: list[Logger] = [MetricsFile(directory / "metrics.csv")]
    if "tensorboard" in cfg["logger"]:
        made.append(TensorBoardLogger(directory, name="tensorboard", version="", purge_step=step))
    if "wandb" in cfg["logger"]:
        made.append(tracking.logger(cfg, directory))
    return made


def callbacks(cfg: Config, directory: Path) -> list[Callback]:
    """Speed, progress, guard, diagnostics, grids, moving average and checkpoints, in the order they must run."""
    speed = Throughput()
    made: list[Callback] = [StepSeeds(cfg["seed"]), speed]
    if cfg["trainer"]["enable_progress_bar"]:
        made.append(ProgressBar(speed))
    if cfg["sweep"]["job"] is not None:
        made.append(ProgressFile(directory / PROGRESS, speed))
    made += _watchers(cfg, directory)
    grids = dict(cfg["callbacks"]["grids"])
    if grids["every_n_epochs"] and not cfg["trainer"]["fast_dev_run"]:
        made.append(PullbackGrids(directory / "grids", cfg["readout"], **grids))
    alignment = dict(cfg["callbacks"]["alignment"])
    if alignment["every_n_epochs"] and not cfg["trainer"]["fast_dev_run"]:
        judge = _evaluator(alignment.pop("evaluator"))
        made.append(AlignmentCurves(cfg["readout"], **alignment, evaluator=judge))
    made += _path_recorder(cfg, directory)
    if cfg["ema"] is not None:
        made.append(MovingAverage(decay=cfg["ema"]))  # after the grids: they show what was validated
    if cfg["trainer"]["enable_checkpointing"] is not False and not cfg["trainer"]["fast_dev_run"]:
        made += checkpoints(directory / "checkpoints", **cfg["callbacks"]["checkpoint"])
    return made


def _watchers(cfg: Config, directory: Path) -> list[Callback]:
    """The guard against divergence, which comes before anything is saved, and the diagnostics."""
    made: list[Callback] = []
    guard, sites = dict(cfg["callbacks"]["guard"]), dict(cfg["callbacks"]["diagnostics"])
    if guard["every_n_steps"]:
        made.append(DivergenceGuard(**guard))
    if sites["every_n_epochs"] and not cfg["trainer"]["fast_dev_run"]:
        made.append(SiteDiagnostics(directory / "diagnostics.csv", **sites))
    return made


def _path_recorder(cfg: Config, directory: Path) -> list[Callback]:
    """The recorder of gate patterns, where `callbacks.paths` asks for it."""
    options = dict(cfg["callbacks"]["paths"])
    if options["recordings"] == 0 or cfg["trainer"]["fast_dev_run"]:
        return []
    return [PathRecorder(directory / "paths", cfg["readout"], **options)]


def checkpoints(folder: Path, every_n_steps: int = 0) -> list[Callback]:
    """`last.ckpt` to go on from, `best.ckpt` by validation accuracy, `exception.ckpt` for looking into an error."""
    return [
        BestCheckpoint(folder),
        SaveOnException(folder / "exception.ckpt"),
        LastCheckpoint(folder / "last.ckpt", every_n_steps),  # the last of all: everything else is in it
    ]


def trainer(cfg: Config, directory: Path, step: int | None = None) -> pl.Trainer:
    """Lightning's Trainer of `trainer=`.

    Args:
        cfg: The config.
        directory: The run's directory.
        step: The optimiser step that a resumed run goes on from.

    Raises:
        SoftgateError: If Lightning refuses an option; the message is Lightning's first sentence.
    """
    options = dict(cfg["trainer"])
    if options["sync_batchnorm"] == "auto":
        several = torch.cuda.device_count() > 1 or options["num_nodes"] > 1
        options["sync_batchnorm"] = options["accelerator"] != "cpu" and torch.cuda.is_available() and several
    if options["barebones"]:
        off = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "log_every_n_steps")
        options |= dict.fromkeys((*off, "num_sanity_val_steps")) | {"logger": False}
    else:
        options |= {"logger": loggers(cfg, directory, step), "callbacks": callbacks(cfg, directory)}
    options["plugins"] = [WholeCheckpoints(), *_listed(options["plugins"])]
    with phrasing_lightnings_refusals():
        made = pl.Trainer(**options, default_root_dir=directory)
    for logger in made.loggers:
        if isinstance(logger, WandbLogger):
            tracking.start(logger)
    return made


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]


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
