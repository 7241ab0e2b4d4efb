"""Weights & Biases: one run for each job, grouped by sweep, offline where the server does not answer.

Curves stand over epochs. The ends of intervals are no curves of their own: they are in the table `alignment/intervals`
and in the picture `curves`, which are logged when the run ends, with the table `results`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from softgate import files
from softgate.errors import SoftgateError, SoftgateWarning
from softgate.options import Options
from softgate.surrogate.description import names
from softgate.training import summary
from softgate.training.wandb_config import WandbConfig

ID = "wandb-id"
"""A run's file with the id of its W&B run."""

PATIENCE = 10.0
"""Seconds that the server has to answer before a run is written to disk instead."""


ENDS = ("_low", "_high")
"""How the names of an interval's ends close."""

EPOCH, STEP = "epoch", "trainer/global_step"
BEST = {"val/acc": "max", "val/acc5": "max", "val/loss": "min"}
"""What stands in the summary of these curves."""

CURVES = (
    *("train/*", "val/*", "align/*", "alignment/*", "grids/*", "lr-*", "surrogate/*"),
    *("gradient_norm", "gpu_memory_gb"),
)
"""Curves over epochs; anything else that is logged is over steps."""

NAMING = (
    *("optim", "schedule", "ema", "gates_from", "trainer.max_epochs"),
    *("surrogate.", "model.", "data.fraction", "data.label_noise", "data.augment"),
)
"""How words begin that a run is named by, beside those that its own name tells of: what is learnt, and how long."""

NOISE = ("print_config", "resume", "logger", "plugins", "trust", "name")
"""Groups that say nothing about what was learnt."""


class Tracker(WandbLogger):
    """Lightning's logger, whose scalars leave the ends of intervals out."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs scalars; those named NAME_low and NAME_high are kept for the end."""
        kept = {key: value for key, value in metrics.items() if not key.endswith(ENDS)}
        super().log_metrics(kept, step)


def called(own: Mapping[str, Any]) -> str:
    """A run's name in W&B: its own, its seed, and what else was asked for, as runs of a sweep differ in it.

    Args:
        own: The whole config as plain data.
    """
    words = [str(word).lstrip("+~") for word in own["sweep"]["overrides"]]
    return " ".join([f"{own['name']}-seed{own['seed']}", *(word for word in words if word.startswith(NAMING))])[:128]


def without_noise(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is null or empty, at any depth."""
    found = {key: without_noise(value) if isinstance(value, Mapping) else value for key, value in plain.items()}
    return {key: value for key, value in found.items() if value is not None and value not in ([], {}, ())}


def logger(options: WandbConfig, config: Options, directory: Path, group: str | None, resumed: bool) -> WandbLogger:
    """The logger of `logger=wandb`; its run is started by `start`.

    Args:
        options: Those of the logger.
        config: The whole config, which goes along with the job's number and words under `sweep`.
        directory: The run's directory.
        group: The sweep's name, for where `logger.wandb.group` names none.
        resumed: Whether to go on with the directory's W&B run.
    """
    own = config.plain
    settings = {**options.plain, "group": options.group or group or str(own["name"])}
    settings["name"] = str(options.name) if options.name is not None else called(own)
    kinds = (own["data"].get("name"), own["model"].get("name"), *names(own["surrogate"]))
    settings["tags"] = list(dict.fromkeys([*options.tags, *(str(kind) for kind in kinds if kind)]))
    settings.pop("offline", None)
    offline = options.offline or os.environ.get("WANDB_MODE") in ("offline", "dryrun")
    if resumed and (directory / ID).is_file():
        settings["id"] = (directory / ID).read_text(encoding="utf-8").strip()
    shown = {key: value for key, value in own.items() if key not in NOISE}
    made = Tracker(save_dir=directory, offline=offline, config=without_noise(shown), **settings)
    made._wandb_init.pop("anonymous", None)  # W&B warns of it, whatever it is
    return made


@rank_zero_only
def start(logger: WandbLogger) -> None:
    """Starts the W&B run now: without a login it fails, and that must not be after the data was loaded.

    Its id is noted, so that a resumed run goes on with it.

    Raises:
        SoftgateError: Without a login, or where the server refuses it.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "online" and not logger._offline:
        trouble = _trouble()
        if trouble:
            _go_offline(logger, trouble)
    try:
        run = _begun(logger)
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        hint = "log in with `wandb login`, or set logger.wandb.offline=true"
        raise SoftgateError(f"logger=wandb: {error}; {hint}.") from None
    except wandb.errors.Error as error:
        _go_offline(logger, str(error))
        run = _begun(logger)
    files.write(f"{run.id}\n", Path(str(logger.save_dir), ID))


def _begun(logger: WandbLogger) -> Any:
    """Starts the run with axes of ours; Lightning's own start puts every curve over steps."""
    import wandb

    if logger._offline:
        logger._wandb_init.setdefault("mode", "offline")
    run = wandb.init(**logger._wandb_init)
    logger._experiment = run
    for axis in (STEP, EPOCH):
        run.define_metric(axis)
    for name in CURVES:
        run.define_metric(name, step_metric=EPOCH)
    for name, best in BEST.items():
        run.define_metric(name, step_metric=EPOCH, summary=best)
    for name in ("train/loss_step", "train/acc_step"):
        run.define_metric(name, step_metric=STEP)
    return run


def conclude(directory: Path, name: str) -> None:
    """Logs what a run has come to, once it has ended: its results, curves and intervals; nothing without W&B.

    Args:
        directory: The run's directory, with `metrics.csv`.
        name: The run's name, for the picture.
    """
    import wandb

    if wandb.run is None or not (directory / "metrics.csv").is_file():
        return
    points = summary.history(directory / "metrics.csv")
    found = summary.summarize(points)
    best = {key: value for key, value in found.items() if key.startswith("best/")}
    wandb.run.summary.update(best)
    shown = [[key, value] for key, value in sorted(found.items()) if not key.endswith(ENDS)]
    values: dict[str, Any] = {"results": wandb.Table(columns=["measure", "value"], data=shown)}
    rows = [
        [readout, metric, epoch, value, *(dict(points.get(f"{key}{end}", ())).get(epoch) for end in ENDS)]
        for key, curve in points.items()
        if key.startswith("align/") and not key.endswith(ENDS)
        for readout, metric in [key.split("/", 2)[1:]]
        for epoch, value in curve
    ]
    if rows:
        columns: list[str | int] = ["read-out", "metric", "epoch", "value", "low", "high"]
        values["alignment/intervals"] = wandb.Table(columns=columns, data=rows)
    if summary.save_curves(points, directory / "curves.png", name):
        values["curves"] = wandb.Image(str(directory / "curves.png"))
    wandb.run.log(values)


@contextmanager
def finishing() -> Iterator[None]:
    """Ends a W&B run as it really ended: a sweep's next job must not write into this one's run."""
    code = 1
    try:
        yield
        code = 0
    finally:
        import wandb

        if wandb.run is not None:
            wandb.finish(exit_code=code)


def _trouble() -> str | None:
    """Why the server cannot be reached; None where it answers, whatever it says."""
    import requests
    from wandb.sdk import wandb_setup

    url = wandb_setup.singleton().settings.base_url
    try:
        answer = requests.post(f"{url}/graphql", json={"query": "{ serverInfo { cliVersionInfo } }"}, timeout=PATIENCE)
    except requests.RequestException as error:
        return f"{url} does not answer ({type(error).__name__})"
    return f"{url} answers with status {answer.status_code}" if answer.status_code >= 500 else None


def _go_offline(logger: WandbLogger, why: str) -> None:
    warnings.warn(
        f"logger=wandb: {why}; the run is written to disk, and `wandb sync {logger.save_dir}/wandb/offline-run-*` "
        "uploads it later.",
        SoftgateWarning,
        stacklevel=2,
    )
    # Not logger._offline: that changes the environment, which W&B has read by now and warns about.
    logger._wandb_init["mode"] = "offline"
