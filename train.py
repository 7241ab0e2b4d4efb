"""Train a network with a backward rule: `uv run train.py`, `uv run train.py --help`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from softgate.runs import cli

CONFIGS = str(Path(__file__).parent / "conf")


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run; returns the best validation accuracy, for sweepers that search."""
    from softgate.runs.report import OBJECTIVE
    from softgate.runs.train import train

    summary: dict = cli.job(train, cfg)
    return summary.get(OBJECTIVE)


if __name__ == "__main__":
    cli.run(main, CONFIGS, "train")
