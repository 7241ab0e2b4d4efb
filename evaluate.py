"""Evaluate a trained network: `uv run evaluate.py runs=<run directory>`, `uv run evaluate.py --help`."""

import atexit
import os
import signal


def stop(number: int, frame: object) -> None:
    """Ends the process in the seconds that the imports below take; `command.run` takes over from there."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        os.write(2, f"stopped by {name}: nothing was begun.\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
        atexit.register(signal.signal, each, signal.SIG_IGN)  # the last act of all: the exit status stands by then

from pathlib import Path  # noqa: E402

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from softgate.cli import command, exits  # noqa: E402

CONFIGS = str(Path(__file__).parent / "conf")


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """One evaluation."""
    from softgate.evaluation.evaluate import evaluate

    exits.job(evaluate, cfg)


if __name__ == "__main__":
    command.run(main, CONFIGS, "evaluate")
