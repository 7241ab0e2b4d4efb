"""Images/s of the whole LightningModule path against a bare PyTorch loop: `uv run benchmarks/framework.py --root data`.

The same network under the same rule, the same batches, optimiser and schedule. Lightning's path is what train.py builds
with checks, metrics, log and progress bar; grids, diagnostics and checkpoints are left out. The two take turns, an
epoch of one, an epoch of the other, in one process.
"""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from common import report
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.nn import functional as F

import softgate as sg
from softgate.training import build, optim
from softgate.training.config import TrainConfig

CONF = Path(__file__).parents[1] / "conf"


def config(words: list[str]) -> TrainConfig:
    """A config as train.py composes it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*words, "name=benchmark"])
    return TrainConfig.read(OmegaConf.to_container(cfg, resolve=True))


class Bare(pl.Callback):
    """Times each epoch of the fit, and after it as many batches of a plain loop."""

    def __init__(self, net: torch.nn.Module, batches: int, settings: optim.OptimConfig, epochs: int) -> None:
        self.net, self.batches = net, batches
        self.optimizer = optim.build_optimizer(net, settings)
        self.schedule = optim.warmup_cosine(self.optimizer, batches * epochs, settings.warmup)
        self.seconds: dict[str, list[float]] = {"lightning": [], "bare": []}
        self._since: list[float] = []

    def on_train_epoch_start(self, trainer, module) -> None:
        self._since = []

    def on_train_batch_end(self, trainer, module, *args) -> None:
        self._since.append(self.now())

    def on_train_epoch_end(self, trainer, module) -> None:
        self.seconds["lightning"].append(self._since[-1] - self._since[0])
        loader, precision = trainer.datamodule.train_dataloader(), trainer.precision_plugin
        self.seconds["bare"].append(self.loop(loader, module.device, precision))

    def loop(self, loader, device, precision) -> float:
        self.net.to(device).train()
        ends = []
        for x, labels in loader:
            with precision.forward_context():
                loss = F.cross_entropy(self.net(x.contiguous(memory_format=torch.channels_last)), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            ends.append(self.now())
            if len(ends) == self.batches:
                break
        return ends[-1] - ends[0]

    @staticmethod
    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(words: list[str], batches: int, rounds: int) -> dict[str, object]:
    words = [
        *words,
        "callbacks=none",
        f"trainer.max_epochs={rounds + 1}",
        f"trainer.limit_train_batches={batches}",
        "trainer.limit_val_batches=0",
        "trainer.enable_checkpointing=false",
    ]
    cfg = config(words)
    data = build.data(cfg)
    module = build.module(cfg, data)
    module.sites.detach()
    net = copy.deepcopy(module.net)
    module.sites = sg.attach(module.net, module.rule)
    sg.attach(net, module.rule)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build.trainer(cfg, Path(folder))
        bare = Bare(net, batches, cfg.optim, rounds + 1)
        trainer.callbacks.append(bare)
        trainer.fit(module, datamodule=data)
    # The first turn of each warms up.
    lightning, plain = (bare.seconds[name][1:] for name in ("lightning", "bare"))
    images = data.batch_size * (batches - 1)
    return {
        "data": f"{cfg.data.name} {data.size} px",
        "batch": data.batch_size,
        "lightning images/s": images / statistics.median(lightning),
        "bare images/s": images / statistics.median(plain),
        "share": statistics.median(b / a for a, b in zip(lightning, plain, strict=True)),
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--root", default="data", help="holds imagenette2-160/")
    options.add_argument("--batches", type=int, default=12)
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--out", type=Path, default=Path("framework.json"))
    options.add_argument("--words", nargs="*", default=["data=imagenette", "data.size=64", "model=resnet18"])
    given = options.parse_args()
    row = measure([f"data.root={given.root}", *given.words], given.batches, given.rounds)
    report("the LightningModule path against a bare loop, median of rounds", [row], given.out)
