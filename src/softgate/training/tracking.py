"""Weights & Biases: one run for each job, grouped by sweep, offline where the server does not answer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from softgate import files
from softgate.errors import SoftgateError, SoftgateWarning
from softgate.options import Options
from softgate.training.wandb_config import WandbConfig

ID = "wandb-id"
"""A run's file with the id of its W&B run."""

PATIENCE = 10.0
"""Seconds that the server has to answer before a run is written to disk instead."""


def logger(options: WandbConfig, config: Options, directory: Path, group: str | None, resumed: bool) -> WandbLogger:
    """The logger of `logger=wandb`; its run is started by `start`.

    Args:
        options: Those of the logger.
        config: The whole config, which goes along with the job's number and words under `sweep`.
        directory: The run's directory.
        group: The sweep's name, for where `logger.wandb.group` names none.
        resumed: Whether to go on with the directory's W&B run.
    """
    settings = {**options.plain, "group": options.group or group}
    settings.pop("offline", None)
    offline = options.offline or os.environ.get("WANDB_MODE") in ("offline", "dryrun")
    if resumed and (directory / ID).is_file():
        settings["id"] = (directory / ID).read_text(encoding="utf-8").strip()
    return WandbLogger(save_dir=directory, offline=offline, config=config.plain, **settings)


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
        run = logger.experiment
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        hint = "log in with `wandb login`, or set logger.wandb.offline=true"
        raise SoftgateError(f"logger=wandb: {error}; {hint}.") from None
    except wandb.errors.Error as error:
        _go_offline(logger, str(error))
        run = logger.experiment
    files.write(f"{run.id}\n", Path(str(logger.save_dir), ID))


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
