"""The command `softgate app`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig

from softgate.cli import command, exits, stops
from softgate.cli.named_runs import LATEST, OUTPUTS, newest

WHAT = ("runs=", "model=")
"""What a page is of."""


def run(words: list[str], configs: Path) -> None:
    """Runs the command and exits with its status.

    Args:
        words: Of the command line, behind `app`; where they name no run and no network, the newest run is meant, and
            where there is none the page offers to train one.
        configs: The folder `conf`.
    """
    # A look is many small passes: threads that spin while they wait take, where others compute too, seconds from each.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch reads it
    asks = any(word in ("--help", "-h", "--cfg", "-c", "--info", "-i") for word in words)
    told = any(word.startswith(WHAT) for word in words) or any(Path(w).exists() or w == LATEST for w in words)
    none = not (asks or told) and newest(OUTPUTS, sweeps=True) is None
    sys.argv[1:] = words if asks or told else [*words, f"runs={f'{OUTPUTS}/**' if none else LATEST}"]
    train = offered(configs) if none else None

    @hydra.main(version_base="1.3", config_path=str(configs.absolute()), config_name="app")
    def main(cfg: DictConfig) -> None:
        from softgate.app.server import serve

        stops.current.kept = lambda: "the page is gone"
        exits.job(partial(serve, train=train), cfg)

    command.run(main, str(configs), "app")


def offered(configs: Path) -> list[str]:
    """The words that start `train.py`, which stands beside the folder `conf`."""
    return [sys.executable, str(configs.absolute().parent / "train.py")]
