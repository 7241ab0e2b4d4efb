"""Evaluate a trained network: `uv run evaluate.py runs=<run directory>`, `uv run evaluate.py --help`."""

import softgate_start

if __name__ == "__main__":
    softgate_start.watch()  # before the seconds that the other imports take

from pathlib import Path

import hydra
from omegaconf import DictConfig

from softgate.cli import command, exits

CONFIGS = str(Path(__file__).parent / "conf")


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """One evaluation."""
    from softgate.evaluation.evaluate import evaluate

    exits.job(evaluate, cfg)


if __name__ == "__main__":
    command.run(main, CONFIGS, "evaluate")
