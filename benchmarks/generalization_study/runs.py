"""One run of the study: composed as train.py composes it, trained by `softgate.training`, measured once at its end."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from generalization_study.measures import Images, final
from generalization_study.mechanism import Mechanism
from generalization_study.plan import FINAL, TUNE, Job, Plan
from softgate import files
from softgate.data import ImageData
from softgate.errors import Diverged
from softgate.training import build, provenance
from softgate.training.config import TrainConfig

CONF = Path(__file__).parents[2] / "conf"


def words(plan: Plan, job: Job, root: Path) -> list[str]:
    """What train.py would be given for a run.

    Args:
        plan: The plan.
        job: The run.
        root: The folder of the data sets.
    """
    arm = [word.replace("{half}", str(plan.epochs(job.cell) / 2)) for word in plan.arms[job.arm]]
    own = [f"experiment=study/{job.cell}", *arm, f"optim.lr={job.rate!r}", f"seed={job.seed}"]
    # Final runs look at no test image before their last weights are there.
    split = f"data.val_split={plan.given['tune_share']}" if job.stage == TUNE else "trainer.limit_val_batches=0"
    folder = plan.place(job.cell, root) if plan.images(job.cell) == "folder" else root
    return [*own, split, f'data.root="{folder}"', "trainer.enable_checkpointing=false", f"name={job.key}"]


def config(plan: Plan, job: Job, root: Path) -> TrainConfig:
    """The config of a run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", overrides=words(plan, job, root))
    return TrainConfig.read(OmegaConf.to_container(composed, resolve=True))


class Runner:
    """Makes runs, one after the other; images and what is made of them are kept from one to the next.

    Args:
        plan: The plan.
        root: The folder of the data sets.
        work: A folder for what a run leaves: its curves, and a final run's last checkpoint.
    """

    def __init__(self, plan: Plan, root: Path, work: Path) -> None:
        self.plan, self.root, self.work = plan, root, work
        self._images: dict[str, Images] = {}
        logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
        logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        torch.set_float32_matmul_precision("high")

    def __call__(self, job: Job) -> dict[str, Any]:
        """The row of a run; a final one has `bits` too, which test images were right, and `mechanism` in some cells.

        Raises:
            SoftgateError: If it cannot be made; divergence is a result.
        """
        cfg = config(self.plan, job, self.root)
        folder = self.work / job.key
        shutil.rmtree(folder, ignore_errors=True)  # what an attempt that was broken off has left
        files.folder(folder)
        begun = time.perf_counter()
        data = build.data(cfg)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        module = build.module(cfg, data)
        trainer = build.trainer(cfg, folder)
        data.setup("fit")
        asked = self.plan.mechanism(job.cell) if job.stage == FINAL else None
        watch = None if asked is None else Mechanism(data, asked)
        if watch is not None:
            trainer.callbacks.append(watch)  # type: ignore[attr-defined]  # set in Trainer.__init__, untyped
        ready, read = time.perf_counter(), watch.seconds if watch else 0.0
        row = self.plan.about(job) | {"epochs": cfg.trainer.max_epochs, "status": "finished"}
        try:
            trainer.fit(module, datamodule=data)
        except Diverged:
            row |= {"status": "diverged", "acc": 1 / len(data.classes)}
        module.to(trainer.strategy.root_device)  # Lightning takes a network off the GPU when it has trained it
        trained = time.perf_counter() - (watch.seconds - read if watch else 0.0)  # without what is no training
        if watch is not None:
            row["mechanism"] = [{"settings": self.plan.mechanism_identity, **one} for one in watch.rows(module)]
        if row["status"] == "finished":
            seen = {key: float(value) for key, value in trainer.callback_metrics.items()}
            row |= {"last_train_loss": seen["train/loss"], "last_train_acc": seen["train/acc"]}
            if job.stage == TUNE:
                row |= {"acc": seen["val/acc"], "nll": seen["val/loss"]}
            else:
                trainer.save_checkpoint(folder / "last.ckpt", weights_only=True)
                row |= final(module.eval(), self._images_of(data), self.plan.given["measures"])
        images = len(data.train_listing) // data.batch_size * data.batch_size * cfg.trainer.max_epochs
        place = provenance.environment(kind=module.device.type)
        return row | {
            "images_per_second": round(images / (trained - ready), 1) if row["status"] == "finished" else None,
            "train_seconds": round(trained - begun, 1),
            "seconds": round(time.perf_counter() - begun, 1),
            "softgate": place["packages"]["softgate"],
            "commit": place["commit"],
            "torch": place["packages"]["torch"],
            "python": place["python"],
            "hardware": place["hardware"],
            "threads": place["threads"],
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _images_of(self, data: ImageData) -> Images:
        key = repr(data.options)
        if key not in self._images:
            self._images = {key: Images(data)}  # of one cell at a time
        return self._images[key]
