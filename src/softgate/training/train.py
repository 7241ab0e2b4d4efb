"""`train(cfg)`: one run, from a config to a directory with everything a comparison needs."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from softgate import files, locks, memory, signals, targets
from softgate.errors import Diverged, Stopped
from softgate.tables import Terminal
from softgate.training import build, provenance, resume, screens, summary, tracking
from softgate.training.callbacks import Checks, LastCheckpoint, Prepares
from softgate.training.config import TrainConfig, place
from softgate.training.scales import calibrate_for_training
from softgate.training.together import TAKES_LESS, Together, ranks


def train(cfg: DictConfig) -> dict[str, Any]:
    """Trains as a config says and leaves the run's directory behind.

    Args:
        cfg: The config of `conf/train.yaml`, composed.

    Returns:
        The summary that `summary.json` holds.

    Raises:
        SoftgateError: For a mistake in the config, before any data is loaded where it can be known by then.
        CannotWrite: If the disk is full, or the directory is gone or cannot be written; the last checkpoint stays.
        Diverged: If the loss is no finite number any more; the last good checkpoint stays.
        OutOfMemory: If memory runs out, or a process that loads images is killed; the last checkpoint stays.
        RankFailed: If there are several ranks and one of them fails, in each of them.
        Stopped: After Ctrl-C, SIGTERM or SIGHUP; `last.ckpt` and the loggers are finished by then.
    """
    _calm()
    console = Terminal()
    directory = Path(HydraConfig.get().runtime.output_dir)
    files.folder(directory)
    with open_dict(cfg):
        cfg.sweep = place(cfg.sweep)
    targets.note_typed(OmegaConf.to_container(cfg))
    config = TrainConfig.read(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    first = getattr(rank_zero_only, "rank", 0) == 0
    lock = locks.held(directory) if first and os.environ.get("NODE_RANK", "0") == "0" else nullcontext()
    with lock, ranks(directory, config.trainer.num_nodes) as together, memory.phrased(TAKES_LESS, together.kept):
        return _run(cfg, config, directory, console, first, together)


def _run(
    cfg: DictConfig, config: TrainConfig, directory: Path, console: Console, first: bool, together: Together
) -> dict[str, Any]:
    former = resume.look(config, directory)
    if former.summary is not None:
        if first:
            console.print(
                f"resume: {directory} is finished already, nothing is left to train.", soft_wrap=True, markup=False
            )
        return former.summary
    data = build.data(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    module = build.module(config, data)
    if getattr(config.model, "frozen", False):  # a gated network's features, in eval mode as they should be
        warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training.*")
    config, added = build.readout(config, module, data.size)
    step = None if former.checkpoint is None else resume.check(former.checkpoint, module, data.options)
    if first:
        resume.begin(OmegaConf.to_yaml(cfg, resolve=True), directory)
        if config.print_config:
            summary.print_tree(config.plain, console)
        if config.print_model:
            from softgate.training import layers  # for whoever asks

            for table in (layers.layers(module, config.data.channels, data.size), layers.call_sites(module)):
                console.print(table.rich())
    with tracking.finishing():
        trainer = build.trainer(config, directory, step)
        if first:
            device = trainer.strategy.root_device
            console.print(screens.first(config, data, module, device, directory, added), soft_wrap=True)
        together.follow(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning does not annotate it
            if isinstance(callback, Checks):
                callback.check(module, data)
        data.setup("fit")
        trained = config.model.weights is not None or (config.gates_from.run is not None and not module.sites.scales)
        if trained and former.checkpoint is None:
            calibrate_for_training(module, data)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning does not annotate it
            if isinstance(callback, Prepares):
                callback.prepare(data, module)
        about = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": provenance.environment(trainer.world_size, trainer.strategy.root_device.type),
        }
        started = time.perf_counter()

        def conclude(status: str = "finished") -> dict[str, Any]:
            own = {"own_gradient": module.sites.unaffected} if module.sites.unaffected else {}
            return _conclude(directory, config, console, about | own, _seconds(trainer, started), status)

        try:
            with build.phrasing_lightnings_refusals():
                trainer.fit(module, datamodule=data, ckpt_path=former.checkpoint, weights_only=True)
        except SystemExit as end:
            # Lightning ends the process after Ctrl-C, with checkpoint and loggers finished; say where they are.
            if first:
                tracking.conclude(directory, str(config.name))
                conclude("interrupted")
            raise Stopped(_stopped_by(trainer, end)) from None
        except Diverged:
            if first:
                tracking.conclude(directory, str(config.name))
                conclude("diverged")
            raise
        if first:
            tracking.conclude(directory, str(config.name))
    found: dict[str, Any] = {}
    if first:
        with signals.deferred("writing the summary"):
            found = conclude()
    last = _last(trainer)
    if last is not None and last.stopped_by is not None:  # asked for when there was nothing left to stop
        raise Stopped(last.stopped_by)
    return found


def _last(trainer: pl.Trainer) -> LastCheckpoint | None:
    return next((each for each in trainer.checkpoint_callbacks if isinstance(each, LastCheckpoint)), None)


def _seconds(trainer: pl.Trainer, started: float) -> float:
    """Seconds of all parts of the run."""
    last = _last(trainer)
    return time.perf_counter() - started if last is None else last.seconds


def _stopped_by(trainer: pl.Trainer, end: SystemExit) -> int:
    """The signal that stopped a run; Lightning exits without telling its number."""
    last = _last(trainer)
    if last is not None and last.stopped_by is not None:
        return last.stopped_by
    if isinstance(end.__context__, Stopped):  # before the first step
        return end.__context__.signal
    return signal.SIGTERM if trainer.received_sigterm else signal.SIGINT


def _conclude(
    directory: Path,
    config: TrainConfig,
    console: Console,
    about: dict[str, Any],
    seconds: float,
    status: str,
) -> dict[str, Any]:
    metrics = directory / "metrics.csv"
    points = summary.history(metrics) if metrics.is_file() else {}
    found = summary.summarize(points)
    found |= {"seconds": round(seconds, 2), "status": status, "peak_memory_gb": round(screens.peak_memory(), 3)}
    if not config.trainer.fast_dev_run:
        files.write_json(found | about, directory / "summary.json")
        summary.save_curves(points, directory / "curves", str(config.name), config.figures)
    console.print(screens.last(status, found, directory, config), soft_wrap=True)
    return found


def _calm() -> None:
    """Silences Lightning's advertisements and the warnings that say nothing about this run."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.trainer.connectors.checkpoint_connector").setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Experiment logs directory .* exists and is not empty.*",
        r".*The number of training batches .* is smaller than the logging interval.*",
        r".*is supported for historical reasons but its usage is discouraged.*",
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*your dataloader is not resumable.*",  # it asks the trainer where to begin
        r".*You are using `torch.load` with `weights_only=False`.*",
        r".*It is recommended to use `self.log\(.*sync_dist=True.*",  # what is logged is reduced already
    ):
        warnings.filterwarnings("ignore", message=message)
    torch.set_float32_matmul_precision("high")
