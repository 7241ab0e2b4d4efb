"""From a composed config to objects: data, module, loggers, callbacks, trainer. The only place that does so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
)
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from softgate import models
from softgate.data import ImageData
from softgate.errors import SoftgateError, require, unknown
from softgate.surrogate import Surrogate
from softgate.training import SoftgateModule
from softgate.training.callbacks import ProgressBar, PullbackGrids, SaveOnException, Throughput

Config = Mapping[str, Any]

KEYS = (
    *("callbacks", "channels_last", "compile", "data", "ema", "logger", "model", "name"),
    *("optim", "print_config", "readout", "seed", "surrogate", "trainer"),
)
LOGGERS = ("csv", "tensorboard", "wandb")


def check(cfg: Config) -> None:
    """Raises `SoftgateError` for what is wrong in a config, before any data is loaded."""
    for key in cfg:
        if key not in KEYS:
            raise unknown("option", key, KEYS)
    Surrogate.from_dict(cfg["surrogate"])
    check_readout(cfg["readout"])
    for name in cfg["logger"]:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
    ema = cfg["ema"]
    require(ema is None or (isinstance(ema, float) and 0 < ema < 1), f"ema={ema}: null or a decay between 0 and 1.")
    require(isinstance(cfg["seed"], int) and cfg["seed"] >= 0, f"seed={cfg['seed']}: a whole number >= 0 is needed.")
    for key in ("compile", "channels_last", "print_config"):
        require(isinstance(cfg[key], bool), f"{key}={cfg[key]}: true or false is needed.")
    every = cfg["callbacks"]["grids"]["every_n_epochs"]
    fine = isinstance(every, int) and every >= 0
    require(fine, f"callbacks.grids.every_n_epochs={every}: a whole number >= 0 is needed; 0 is off.")
    options = cfg["trainer"]
    epochs = options["max_epochs"]
    require(isinstance(epochs, int) and epochs >= 1, f"trainer.max_epochs={epochs}: a whole number >= 1 is needed.")
    accelerator = options["accelerator"]
    require(
        accelerator not in ("gpu", "cuda") or torch.cuda.is_available(),
        f"trainer.accelerator={accelerator}: this machine has no usable GPU; use trainer=cpu.",
    )
    name = cfg["model"]["name"]
    if name not in models.names():
        raise unknown("model.name", name, models.names())


def check_readout(plain: Config) -> Surrogate:
    """The rule of `readout=`; its errors say that they are about it."""
    try:
        return Surrogate.from_dict(plain)
    except SoftgateError as error:
        raise SoftgateError(f"readout: {error}") from None


def data(cfg: Config) -> ImageData:
    """The data module of `data=`."""
    return ImageData(cfg["data"])


def module(cfg: Config, images: ImageData) -> SoftgateModule:
    """The LightningModule of `model=`, `surrogate=` and `optim=`, with its weights loaded."""
    options = cfg["model"]
    name, weights, found = str(options["name"]), options["weights"], len(images.classes)
    classes = options["num_classes"]
    fits = classes is None or classes == found
    require(fits, f"model.num_classes={classes}: the data has {found} classes; leave it null or set {found}.")
    stem = models.resolve_stem(str(options["stem"]), images.size, weights)
    built = SoftgateModule(
        model={"name": name, "stem": stem},
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


def loggers(cfg: Config, directory: Path) -> list[Logger]:
    """CSV always; TensorBoard and W&B where `logger=` names them."""
    made: list[Logger] = [CSVLogger(directory, name="", version="")]
    if "tensorboard" in cfg["logger"]:
        log_graph = bool(cfg["logger"]["tensorboard"]["log_graph"])
        made.append(TensorBoardLogger(directory, name="tensorboard", version="", log_graph=log_graph))
    if "wandb" in cfg["logger"]:
        options = dict(cfg["logger"]["wandb"])
        offline = bool(options.pop("offline")) or os.environ.get("WANDB_MODE") == "offline"
        made.append(WandbLogger(save_dir=directory, offline=offline, config=dict(cfg), **options))
    return made


def callbacks(cfg: Config, directory: Path) -> list[Callback]:
    """Checkpoints, speed, progress, grids and the moving average, in the order they must run."""
    speed = Throughput()
    made: list[Callback] = [speed]
    if cfg["trainer"]["enable_progress_bar"]:
        made.append(ProgressBar(speed))
    grids = dict(cfg["callbacks"]["grids"])
    if grids["every_n_epochs"]:
        made.append(PullbackGrids(directory / "grids", cfg["readout"], **grids))
    if cfg["ema"] is not None:
        made.append(EMAWeightAveraging(decay=cfg["ema"]))  # after the grids: they show what was validated
    if cfg["trainer"]["enable_checkpointing"] is not False:
        made += checkpoints(directory / "checkpoints")
    return made


def checkpoints(folder: Path) -> list[Callback]:
    """`last.ckpt` after every epoch and on any exception, `best.ckpt` by validation accuracy."""
    same: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    return [
        ModelCheckpoint(filename="best", monitor="val/acc", mode="max", **same),
        ModelCheckpoint(filename="last", **same),
        SaveOnException(folder / "last.ckpt"),
    ]


def trainer(cfg: Config, directory: Path) -> pl.Trainer:
    """Lightning's Trainer of `trainer=`.

    Raises:
        SoftgateError: If Lightning refuses an option; the message is Lightning's first sentence.
    """
    options = dict(cfg["trainer"])
    if options["sync_batchnorm"] == "auto":
        options["sync_batchnorm"] = options["accelerator"] != "cpu" and torch.cuda.device_count() > 1
    try:
        return pl.Trainer(
            **options,
            default_root_dir=directory,
            logger=loggers(cfg, directory),
            callbacks=callbacks(cfg, directory),
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        if isinstance(error, SoftgateError):
            raise
        raise SoftgateError(f"trainer: {error}") from error
