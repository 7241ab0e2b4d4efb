"""Fixtures of the tests of the app: two runs of the digits, hard and soft, one with recordings, libraries of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from app_options import options
from configs import TINY, composed, container
from softgate import files
from softgate.app.library import Library
from softgate.data import ImageData
from softgate.training import SoftgateModule
from softgate.training.callbacks.grids import read_out
from softgate.training.config import TrainConfig
from softgate.training.networks import of_run
from softgate.training.train import train

QUICK = (
    "callbacks.grids.every_n_epochs=0",
    "callbacks.guard.every_n_steps=0",
    "callbacks.diagnostics.every_n_epochs=0",
)
RECORDED = ("model=plain8", "callbacks=paths", "callbacks.paths.recordings=3", "callbacks.paths.images=40", *QUICK)


def made(place: Path, surrogate: str, seed: int, epochs: int = 2) -> None:
    """A run as `train.py` leaves it, with weights that were not trained, others in each checkpoint."""
    words = ("model=plain8", "data.size=16", f"surrogate={surrogate}", f"seed={seed}")
    plain = container(*words, directory=place)
    read = TrainConfig.read(plain)
    data = ImageData(read.data, splits=("val",))
    for name, begun in (("best", seed + 10), ("last", seed)):
        torch.manual_seed(begun)
        module = SoftgateModule(of_run(read.model, 16, 3), read.surrogate.to_dict(), data.classes)
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        checkpoint |= {"datamodule_hyper_parameters": {"options": plain["data"]}}
        module.on_save_checkpoint(checkpoint)
        files.save(checkpoint, files.folder(place / "checkpoints") / f"{name}.ckpt")
    (place / "config.yaml").write_text(yaml.safe_dump(plain))
    (place / "summary.json").write_text(json.dumps({"best/epoch": 0, "val/acc": 0.1, "status": "finished"}))
    rows = [f"{epoch},{epoch},{0.1 * (epoch + 1)},{0.2 + epoch}" for epoch in range(epochs)]
    (place / "metrics.csv").write_text("\n".join(["epoch,step,val/acc,align/soft/noise_cosine", *rows]) + "\n")
    images, labels = data.probe(2, 314)
    grid = read_out(module, data, images, labels, [0, 5], read.readout)
    for epoch in range(epochs):
        place_ = files.folder(place / "grids")
        files.save_picture(grid.picture(f"epoch {epoch}"), place_ / f"epoch={epoch:03d}.png")
        files.save(grid.tensors(), place_ / f"epoch={epoch:03d}.pt")


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("looked at")
    for name, seed in (("excitation", 0), ("none", 1)):
        made(root / name, name, seed)
    return root


@pytest.fixture(scope="session")
def library(runs) -> Library:
    return Library(options(f'runs="{runs}/*"', "accelerator=cpu"))


@pytest.fixture(scope="session")
def recorded(tmp_path_factory, runs) -> Library:
    """A run with a recording, and one without."""
    place = tmp_path_factory.mktemp("recorded")
    train(composed(*TINY, *RECORDED, directory=place / "recorded"))
    shutil.copytree(runs / "none", place / "bare")
    return Library(options(f'runs="{place}/*"', "accelerator=cpu"))
