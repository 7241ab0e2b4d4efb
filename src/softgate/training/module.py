"""The LightningModule: a classifier trained with the true forward pass and a surrogate backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from softgate import models
from softgate.sites import Sites, attach
from softgate.surrogate import Surrogate
from softgate.training import optim as optimizers

Batch = tuple[Tensor, Tensor]


def accuracies(classes: int) -> MetricCollection:
    """Top-1 accuracy under `acc` and, where there are more than five classes, top-5 under `acc5`."""
    found: dict[str, Metric | MetricCollection] = {"acc": MulticlassAccuracy(classes, average="micro")}
    if classes > 5:
        found["acc5"] = MulticlassAccuracy(classes, average="micro", top_k=5)
    return MetricCollection(found)


class SoftgateModule(pl.LightningModule):
    """A torchvision classifier attached to a backward rule.

    All arguments are plain data, so that checkpoints load with `weights_only` and through
    `SoftgateModule.load_from_checkpoint(path)`. State-dict names are `net.` and torchvision's own, so a trained
    checkpoint loads into a bare torchvision model.

    Args:
        model: `name` and `stem` of the network, and `transform_input` where it has that option.
        surrogate: The backward rule of training, as `Surrogate.to_dict` writes it.
        classes: Names of the classes.
        optim: The options of `optim=`; None for a module that is only evaluated.
        channels_last: Keep weights and images in channels-last order.
        compile: Compile the network when training starts.

    Raises:
        SoftgateError: If the network cannot be built or the rule does not cover it.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        surrogate: Mapping[str, Any],
        classes: Sequence[str],
        optim: Mapping[str, Any] | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if optim is not None:
            optimizers.check(optim)
        self.optim = optim
        self.classes = list(classes)
        self.compile_net = compile
        transform = bool(model.get("transform_input", False))
        self.net: nn.Module = models.build(str(model["name"]), len(self.classes), str(model["stem"]), transform)
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.channels_last = channels_last
        self.rule = Surrogate.from_dict(surrogate)
        self.sites: Sites = attach(self.net, self.rule)
        smoothing = float(optim["label_smoothing"]) if optim else 0.0
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.mix_images = _mixing(len(self.classes), optim or {})
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.train_scores = accuracies(len(self.classes)).clone(prefix="train/")
        self.val_scores = accuracies(len(self.classes)).clone(prefix="val/")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] for images [B, 3, H, W]."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.net(x)
        return logits

    def setup(self, stage: str) -> None:
        """Compiles the network, if asked to, before training starts."""
        if stage == "fit" and self.compile_net:
            self.net.compile()  # in place: no wrapper, no prefix in the state dict

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of one batch, under the training rule."""
        x, labels = batch
        targets = labels
        if self.mix_images is not None:
            x, targets = self.mix_images(x, labels)
        logits = self(x)
        loss: Tensor = self.criterion(logits, targets)
        self.train_loss.update(loss.detach(), len(x))
        self.train_scores.update(logits.detach(), labels)
        self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's training loss and accuracy, and the learning rate it ended with."""
        self._log_epoch("train", self.train_loss, self.train_scores)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def validation_step(self, batch: Batch, index: int) -> None:
        """Loss (without label smoothing) and accuracy of one batch."""
        x, labels = batch
        logits = self(x)
        self.val_loss.update(nn.functional.cross_entropy(logits.float(), labels), len(x))
        self.val_scores.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation loss and accuracy."""
        self._log_epoch("val", self.val_loss, self.val_scores)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its warm-up and cosine, stepped after every batch."""
        assert self.optim is not None
        optimizer = optimizers.build_optimizer(self.net, self.optim)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = optimizers.warmup_cosine(optimizer, steps, float(self.optim["warmup"]))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def _log_epoch(self, split: str, loss: MeanMetric, scores: MetricCollection) -> None:
        values = {f"{split}/loss": loss.compute(), **scores.compute()}
        loss.reset()
        scores.reset()
        self.log_dict({key: value for key, value in values.items() if not key.endswith("acc")})
        self.log(f"{split}/acc", values[f"{split}/acc"], prog_bar=True)


def _mixing(classes: int, options: Mapping[str, Any]) -> v2.Transform | None:
    mixes: list[v2.Transform] = []
    if options.get("mixup"):
        mixes.append(v2.MixUp(alpha=float(options["mixup"]), num_classes=classes))
    if options.get("cutmix"):
        mixes.append(v2.CutMix(alpha=float(options["cutmix"]), num_classes=classes))
    return v2.RandomChoice(mixes) if mixes else None
