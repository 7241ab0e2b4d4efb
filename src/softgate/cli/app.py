"""The command `softgate app`."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from softgate.cli import command, exits, stops
from softgate.cli.named_runs import LATEST

WHAT = ("runs=", "model=")
"""What a page is of."""


def run(words: list[str], configs: Path) -> None:
    """Runs the command and exits with its status.

    Args:
        words: Of the command line, behind `app`; where they name no run and no network, the newest run is meant.
        configs: The folder `conf`.
    """
    asks = any(word in ("--help", "-h", "--cfg", "-c", "--info", "-i") for word in words)
    told = any(word.startswith(WHAT) for word in words) or any(Path(w).exists() or w == LATEST for w in words)
    sys.argv[1:] = words if asks or told else [*words, f"runs={LATEST}"]

    @hydra.main(version_base="1.3", config_path=str(configs.absolute()), config_name="app")
    def main(cfg: DictConfig) -> None:
        from softgate.app.server import serve

        stops.current.kept = lambda: "the page is gone"
        exits.job(serve, cfg)

    command.run(main, str(configs), "app")
