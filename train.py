"""Train a network with a backward rule: `uv run train.py`, `uv run train.py --help`."""

import softgate_start

if __name__ == "__main__":
    softgate_start.watch()  # before the seconds that the other imports take

from pathlib import Path

import hydra
from omegaconf import DictConfig

from softgate.cli import command, exits

CONFIGS = str(Path(__file__).parent / "conf")


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run; returns the best validation accuracy, for sweepers that search."""
    from softgate.training.summary import OBJECTIVE
    from softgate.training.train import train

    summary: dict = exits.job(train, cfg)
    return summary.get(OBJECTIVE)


if __name__ == "__main__":
    command.run(main, CONFIGS, "train")
