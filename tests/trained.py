"""Training as `train.py` does it, within the test's process."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs import TINY, composed
from softgate.training.train import train

BARE_GRIDS = ("callbacks.grids.raw=false", "callbacks.grids.film=false", "callbacks.grids.early=false")


def fitted(directory: Path, *overrides: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains as train.py does; gives the weights of last.ckpt and the summary."""
    summary = train(composed(*TINY, *overrides, directory=directory))
    state = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state, summary


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
