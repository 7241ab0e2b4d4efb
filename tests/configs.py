"""Composing configs as the commands do, without starting a process."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from softgate.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

# Small enough to train in a second or two, real in every other respect.
TINY = (
    "print_config=false",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=2",
    "data.batch_size=8",
    "data.size=16",
    "callbacks.grids.classes=2",
)


def composed(*overrides: str, name: str = "train", directory: Path | None = None) -> DictConfig:
    """The config of a command, with Hydra's run directory set for code that asks for it."""
    words = [*overrides, *([f"hydra.run.dir={directory}"] if directory else [])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, overrides=words, return_hydra_config=True)
    OmegaConf.set_readonly(cfg.hydra, False)
    cfg.hydra.runtime.output_dir = str(directory)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    plain = cfg.copy()
    # `name` reads the chosen groups from the hydra node, so it is resolved before that node goes.
    if "name" in plain:
        plain.name = cfg.name
    plain.pop("hydra")
    return plain


def configured(*overrides: str, **kwargs: Any) -> TrainConfig:
    """The config of `train.py` as types."""
    return TrainConfig.read(container(*overrides, **kwargs))


def container(*overrides: str, **kwargs: Any) -> dict[str, Any]:
    """The same as plain data."""
    plain: Any = OmegaConf.to_container(composed(*overrides, **kwargs), resolve=True)
    return plain
