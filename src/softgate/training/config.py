"""What can be wrong in a config, said before any data is loaded and before a sweep starts its first job."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.strategies import StrategyRegistry

from softgate import models
from softgate.data import datamodule
from softgate.errors import SoftgateError, is_number, is_whole, require, unknown
from softgate.surrogate.rule import Surrogate
from softgate.training import optim

Config = Mapping[str, Any]

KEYS = (
    *("callbacks", "channels_last", "compile", "data", "ema", "logger", "model", "name"),
    *("optim", "plugins", "print_config", "readout", "resume", "seed", "surrogate", "sweep", "trainer"),
)
SECTIONS = (
    *("data", "model", "surrogate", "readout", "optim", "trainer", "sweep", "callbacks"),
    *("callbacks.grids", "callbacks.alignment", "callbacks.paths"),
    *("callbacks.guard", "callbacks.diagnostics", "callbacks.checkpoint"),
)
"""Keys with options under them."""

PRECISIONS = (
    *("32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true"),
    *("transformer-engine", "transformer-engine-float16"),
)

LOGGERS = ("csv", "tensorboard", "wandb")


def load_plugins(modules: Any) -> None:
    """Imports the modules of `plugins=`; what they define by name can then be used in configs.

    Only names typed by the user are imported; nothing in a checkpoint is.
    """
    fine = isinstance(modules, (list, tuple)) and all(isinstance(name, str) for name in modules)
    require(fine, f"plugins={modules}: a list of module names is needed.")
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise SoftgateError(f"plugins: {name} cannot be imported ({error}).") from None


def check(cfg: Config) -> None:
    """Raises `SoftgateError` for what is wrong in a config; loads no data and builds no network."""
    for key in cfg:
        if key not in KEYS:
            raise unknown("option", key, KEYS)
    for path in SECTIONS:
        _check_section(cfg, path)
    Surrogate.from_dict(cfg["surrogate"])
    check_readout(cfg["readout"])
    for name in cfg["logger"]:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
    ema, seed = cfg["ema"], cfg["seed"]
    require(ema is None or (isinstance(ema, float) and 0 < ema < 1), f"ema={ema}: null or a decay between 0 and 1.")
    require(is_whole(seed, 0) and seed < 2**32, f"seed={seed}: a whole number from 0 to 2^32 - 1 is needed.")
    for key in ("compile", "channels_last", "print_config", "resume"):
        require(isinstance(cfg[key], bool), f"{key}={cfg[key]}: true or false is needed.")
    _check_sweep(cfg["sweep"])
    for name, key in (
        *(("grids", "every_n_epochs"), ("diagnostics", "every_n_epochs"), ("alignment", "every_n_epochs")),
        ("guard", "every_n_steps"),
    ):
        every = cfg["callbacks"][name][key]
        require(is_whole(every, 0), f"callbacks.{name}.{key}={every}: a whole number >= 0 is needed; 0 is off.")
    _check_trainer(cfg["trainer"])
    datamodule.check(cfg["data"])
    optim.check(cfg["optim"])
    models.check(cfg["model"])


def check_readout(plain: Config) -> Surrogate:
    """The rule of `readout=`; its errors say that they are about it."""
    try:
        return Surrogate.from_dict(plain)
    except SoftgateError as error:
        raise SoftgateError(f"readout: {error}") from None


def _check_section(cfg: Config, path: str) -> None:
    value: Any = cfg
    for part in path.split("."):
        value = value.get(part)
    require(isinstance(value, Mapping), f"{path}={value}: it has options under it, such as {path}.KEY=VALUE.")


def _check_sweep(options: Config) -> None:
    resume = options["resume"]
    require(isinstance(resume, bool), f"sweep.resume={resume}: true or false is needed.")
    single = resume and options["job"] is None
    require(not single, "sweep.resume=true: it is for sweeps (-m); resume=DIRECTORY goes on with a single run.")


Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is fine, and the words for what is."""


def _whole(least: int, *others: Any) -> Rule:
    words = "".join(f", or {_spelt(other)}" for other in others)
    return lambda v: is_whole(v, least) or any(v is o or v == o for o in others), f"a whole number >= {least}{words}"


def _among(*names: Any) -> Rule:
    return lambda v: any(v is n or (v == n and type(v) is type(n)) for n in names), " or ".join(map(_spelt, names))


def _spelt(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


_BATCHES: Rule = (
    lambda v: v is None or is_whole(v, 0) or (isinstance(v, float) and 0 <= v <= 1),
    "a whole number >= 0, a share from 0.0 to 1.0, or null",
)
_SWITCH = _among(True, False)
_TRAINER: Mapping[str, Rule] = {
    "num_nodes": _whole(1),
    "max_steps": _whole(1, -1),
    "min_epochs": _whole(0, None),
    "min_steps": _whole(0, None),
    "accumulate_grad_batches": _whole(1),
    "gradient_clip_val": (lambda v: v is None or (is_number(v) and v >= 0), "a number >= 0, or null"),
    "gradient_clip_algorithm": _among("norm", "value", None),
    **dict.fromkeys([f"limit_{kind}_batches" for kind in ("train", "val", "test", "predict")], _BATCHES),
    "overfit_batches": _BATCHES,
    "fast_dev_run": (lambda v: isinstance(v, bool) or is_whole(v, 0), "true, false or a number of batches"),
    "val_check_interval": (
        lambda v: v is None or is_whole(v, 1) or (isinstance(v, float) and 0 < v <= 1) or isinstance(v, (str, dict)),
        "a whole number >= 1, a share above 0 and up to 1.0, a time as DD:HH:MM:SS, or null",
    ),
    "check_val_every_n_epoch": _whole(1, None),
    "num_sanity_val_steps": _whole(0, -1),
    "log_every_n_steps": _whole(0),
    "reload_dataloaders_every_n_epochs": _whole(0),
    "deterministic": _among(True, False, None, "warn"),
    "benchmark": _among(True, False, None),
    "sync_batchnorm": _among(True, False, "auto"),
    **dict.fromkeys(("enable_progress_bar", "enable_model_summary", "inference_mode", "detect_anomaly"), _SWITCH),
    **dict.fromkeys(("use_distributed_sampler", "barebones"), _SWITCH),
    "enable_checkpointing": _among(True, False, None),
    "profiler": _among(None, "simple", "advanced", "pytorch", "xla"),
}


def _check_trainer(options: Config) -> None:
    epochs, limited = options["max_epochs"], options["max_steps"] != -1 or options["max_time"] is not None
    fine = is_whole(epochs, 1) or (epochs in (None, -1) and not isinstance(epochs, bool) and limited)
    require(fine, f"trainer.max_epochs={epochs}: a whole number >= 1 is needed, or -1 with max_steps or max_time.")
    batches = options["limit_train_batches"]
    empty = is_number(batches) and batches == 0
    require(not empty, f"trainer.limit_train_batches={batches}: there is nothing to train on; null is no limit.")
    for key, (fits, words) in _TRAINER.items():
        require(fits(options[key]), f"trainer.{key}={_spelt(options[key])}: {words} is needed.")
    precision = options["precision"]
    if precision is not None and str(precision) not in (*PRECISIONS, "64", "32", "16", "bf16"):
        raise unknown("trainer.precision", precision, PRECISIONS)
    strategy = options["strategy"]
    strategies = ["auto", *StrategyRegistry.available_strategies()]
    if not isinstance(strategy, Mapping) and strategy not in strategies:
        raise unknown("trainer.strategy", strategy, strategies)
    _check_devices(options)


def _check_devices(options: Config) -> None:
    """Raises `SoftgateError` where more devices are asked for than this machine has."""
    accelerator, devices, gpus = options["accelerator"], options["devices"], torch.cuda.device_count()
    accelerators = {"auto", "gpu", *AcceleratorRegistry.available_accelerators()}
    if accelerator not in accelerators:
        raise unknown("trainer.accelerator", accelerator, accelerators)
    require(
        accelerator not in ("gpu", "cuda") or gpus > 0,
        f"trainer.accelerator={accelerator}: this machine has no usable GPU; use trainer=cpu.",
    )
    numbers = isinstance(devices, (list, tuple)) and len(devices) > 0 and all(is_whole(each, 0) for each in devices)
    typed = isinstance(devices, str) and (devices == "auto" or re.fullmatch(r"\d+(, ?\d+)*,?", devices) is not None)
    require(
        is_whole(devices, 1) or devices == -1 or numbers or typed,
        f"trainer.devices={devices}: a whole number >= 1, a list of GPU numbers, -1 for all, or auto is needed.",
    )
    most = len(devices) if isinstance(devices, (list, tuple)) else devices
    if not isinstance(most, int) or most == -1:
        return
    if gpus and accelerator in ("auto", "gpu", "cuda"):
        require(most <= gpus, f"trainer.devices={devices}: this machine has {gpus} GPU{'s' if gpus > 1 else ''}.")
    else:  # two processes are let pass on one core, to try out what several would do
        cores = os.cpu_count() or 1
        require(most <= max(2, cores), f"trainer.devices={devices}: this machine has no GPU and {cores} CPU cores.")
