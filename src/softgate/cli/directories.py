"""The directory of a run, a sweep or an evaluation: nobody else's, and locked before Hydra writes into it.

Hydra names directories after the clock, and two commands may start in one second. `conf/` has `Directory` called when
everything is composed and nothing is written.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from softgate import files, locks
from softgate.cli import exits, ranks, stops
from softgate.cli.checks import check
from softgate.errors import SoftgateError
from softgate.quoting import quoted


class Directory(Callback):
    """Makes the directory that Hydra is about to write into, and locks it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a run or an evaluation."""
        _settle(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a sweep."""
        _settle(config, "sweep")


def _settle(config: DictConfig, kind: str) -> None:
    # Hydra makes a warning of what a callback raises, so a refusal ends the process here.
    try:
        settle(config, kind)
    except SoftgateError as error:
        exits.refuse(str(error), error.status)
    except Exception:
        traceback.print_exc()
        sys.exit(exits.FAILED)


def settle(config: DictConfig, kind: str) -> None:
    """Makes and locks `hydra.run.dir` or `hydra.sweep.dir`; one that comes from the clock is made anew.

    Args:
        config: As Hydra composed it; where the clock's directory is there, it gets the one that was made instead.
        kind: run or sweep.

    Raises:
        SoftgateError: If another process writes into it, or an option of a run or an evaluation is wrong.
        CannotWrite: If it cannot be made.
    """
    if not ranks.first():
        return
    words, place = config.hydra.overrides.hydra, config.hydra[kind]
    typed: Any = OmegaConf.to_container(words, resolve=False)  # what torchrun's ranks agree on says ${name}
    given = any(word.lstrip("+").startswith(f"hydra.{kind}.dir=") for word in typed)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)  # the name of a run reads its choices from there
    try:
        directory = Path(str(place.dir))
        if kind == "run":
            check(config)
    finally:
        HydraConfig.instance().cfg = before
    if given:
        files.folder(directory)
    else:
        directory = files.new_folder(directory)
        with read_write(config.hydra):
            place.dir = str(directory)
            words.append(f"hydra.{kind}.dir={quoted(directory)}")  # what a sweep's jobs are composed with
    stops.current.directory, stops.current.named = directory, kind == "run" and not given
    locks.take(directory)
    if kind == "run":
        print("importing PyTorch and Lightning ...", flush=True)  # the first line, before seconds of silence
