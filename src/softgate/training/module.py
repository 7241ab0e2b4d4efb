"""The LightningModule: a classifier trained with the true forward pass and a surrogate backward pass."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from softgate import targets
from softgate.classes import Match
from softgate.errors import SoftgateWarning, require
from softgate.paths.frozen import FrozenGates
from softgate.sites.attaching import attach
from softgate.sites.sites import Sites
from softgate.surrogate.rule import Surrogate
from softgate.training import networks
from softgate.training.optim import build_optimizer, build_schedule
from softgate.training.optim_config import Plan, read_optim
from softgate.training.robust import Robust

Batch = tuple[Tensor, Tensor]

SCALES = "softgate_scales"
"""Where a checkpoint keeps the per-channel scales: beside the state dict, so that this loads anywhere."""

GATES = "softgate_gates"
"""Where it keeps the weights of the frozen network whose gates are taken."""

SO_FAR = "softgate_so_far"
"""Where a checkpoint of the midst of an epoch keeps the sums of the training metrics."""


def accuracies(classes: int) -> MetricCollection:
    """Top-1 accuracy under `acc` and, where there are more than five classes, top-5 under `acc5`."""
    found: dict[str, Metric | MetricCollection] = {"acc": MulticlassAccuracy(classes, average="micro")}
    if classes > 5:
        found["acc5"] = MulticlassAccuracy(classes, average="micro", top_k=5)
    return MetricCollection(found, compute_groups=False)  # or two that agree on the first batch share their counts


def moment(rule: Surrogate | None) -> dict[str, float]:
    """The rule of this moment as curves: temperature (of the gate, or else the pool), mix, and whether it is on."""
    if rule is None:
        return {}
    warm = next((part.temperature for part in (rule.gate, rule.pool) if hasattr(part, "temperature")), None)
    found = {} if warm is None else {"surrogate/temperature": float(warm)}
    return found | {"surrogate/mix": float(rule.mix), "surrogate/on": float(rule.mix > 0)}


class SoftgateModule(pl.LightningModule):
    """A classifier attached to a backward rule.

    All arguments are plain data, so that checkpoints load with `weights_only` and through
    `SoftgateModule.load_from_checkpoint(path)`. State-dict names are `net.` and torchvision's own, so a trained
    checkpoint loads into a bare torchvision model.

    Args:
        model: `name` and `stem` of a network of `softgate.models`, `transform_input` where it has that option, and
            `channels` if not 3; or `_target_`, its arguments and a `name`, for any other.
        surrogate: The backward rule of training, as `Surrogate.to_dict` writes it.
        classes: Names of the classes.
        optim: The options of `optim=`; None for a module that is only evaluated.
        channels_last: Keep weights and images in channels-last order.
        compile: Compile the network when training starts.
        metrics: Targets of torchmetrics by name, logged after each epoch as `val/NAME`.
        gates_from: The options of `gates_from=`, with a run; None for a network with gates of its own.
        robust: The arguments of a `softgate.training.robust.Robust`; None where images and loss are what they are.

    Attributes:
        found: Where its classes were found in the weights that it begins with; None where it was not so.
        gates: Runs the network with the gates of a frozen one; None where it has its own.
        epochs_before: Epochs of the learning rate's schedule that lie before this training.

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
        metrics: Mapping[str, Mapping[str, Any]] | None = None,
        gates_from: Mapping[str, Any] | None = None,
        robust: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        later = {"metrics": metrics, "gates_from": gates_from, "robust": robust}
        unset = [name for name, value in later.items() if not value]
        self.save_hyperparameters(ignore=unset)
        self.optim = None if optim is None else read_optim(optim)
        self.classes = list(classes)
        self.found: Match | None = None
        self.compile_net = compile
        self.architecture = dict(model)
        self.net: nn.Module = networks.build(model, len(self.classes))
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.channels_last = channels_last
        self.rule = Surrogate.from_dict(surrogate)
        self.sites: Sites = attach(self.net, self.rule)
        given = gates_from is not None and gates_from["gates"] != "own"
        self.gates = FrozenGates(self.sites, self.net) if given else None  # its weights come later
        self.epochs_before = 0
        self.moving = False  # whether the rule's schedule changes a value from step to step now
        smoothing = float(self.optim.label_smoothing) if self.optim else 0.0
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.mix_images = None if self.optim is None else _mixing(len(self.classes), self.optim)
        self.robust = None if robust is None else Robust(**robust)
        self.train_loss, self.val_loss, self.penalties = MeanMetric(), MeanMetric(), MeanMetric()
        self.train_scores = accuracies(len(self.classes)).clone(prefix="train/")
        self.val_scores = accuracies(len(self.classes)).clone(prefix="val/")
        own = {name: _metric(name, given, len(self.classes)) for name, given in (metrics or {}).items()}
        self.own_scores = MetricCollection(own, prefix="val/", compute_groups=False)  # type: ignore[arg-type]  # metrics

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] for images [B, C, H, W]."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        # A rule's numbers are constants of a compiled network: it would be compiled anew in every step.
        stance: AbstractContextManager[Any]
        stance = torch.compiler.set_stance("force_eager") if self.compile_net and self.moving else nullcontext()
        with stance:
            # Where this process has no image left the network runs all the same, as others wait for it.
            logits: Tensor = self.net(x) if self.gates is None or not len(x) else self.gates(x)
        return logits

    def setup(self, stage: str) -> None:
        """Compiles the network, if asked to, before training starts."""
        if stage == "fit" and self.compile_net:
            self.net.compile()  # in place: no wrapper, no prefix in the state dict
            if any(
                ramp and ramp.shape != "constant" for ramp in (self.rule.schedule.temperature, self.rule.schedule.mix)
            ):
                warnings.warn(
                    "compile=true: while surrogate.schedule moves the rule from step to step the network runs eagerly; "
                    "each new value would be compiled anew.",
                    SoftgateWarning,
                    stacklevel=2,
                )

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Puts the rule of this moment in force, where it has a schedule."""
        if self.rule.schedule.constant:
            return
        batches = self.trainer.num_training_batches
        epoch = self.current_epoch + (index / batches if math.isfinite(batches) else 0.0)
        self.sites.advance(epoch, self.global_step)
        self.moving = self.rule.schedule.moving(epoch, self.global_step)
        self.log_dict({f"{name}_step": value for name, value in moment(self.sites.rule).items()})

    def on_after_backward(self) -> None:
        """Averages the per-channel scales over processes, so that all of them gate alike."""
        if self.rule.scale == "channel" and self.trainer.world_size > 1:
            self.sites.scales.average()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the per-channel scales beside the state dict, and within an epoch its loss and accuracy so far."""
        if self.sites.scales:
            checkpoint[SCALES] = self.sites.scales.state_dict()
        if self.gates is not None:
            checkpoint[GATES] = self.gates.state_dict()
        if self.train_loss.update_called:
            checkpoint[SO_FAR] = self._so_far()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts them back."""
        if SCALES in checkpoint:
            self.sites.scales.load_state_dict(checkpoint[SCALES])
        if self.gates is not None:
            self.gates.load_state_dict(checkpoint[GATES])
        if SO_FAR in checkpoint and self._trainer is not None and self.global_rank == 0:  # summed over processes
            for metric, state in zip(self._running(), checkpoint[SO_FAR], strict=True):
                for name, value in state.items():
                    setattr(metric, name, value.to(self.device))
                metric._update_count = 1

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of one batch, under the training rule."""
        x, labels = batch
        targets = labels
        if self.mix_images is not None:
            x, targets = self.mix_images(x, labels)
        weight = 0.0 if self.robust is None else self.robust.options.gradient_penalty
        if self.robust is not None:
            x = self.robust.images(x, targets, self.net, self.sites)
            x = x.detach().requires_grad_(bool(weight))
        logits = self(x)
        loss: Tensor = self.criterion(logits, targets)
        self.train_loss.update(loss.detach(), len(x))
        self.train_scores.update(logits.detach(), labels)
        self.log("train/loss_step", loss, prog_bar=True)
        if self.robust is None or not weight:
            return loss
        penalty = self.robust.penalty(loss, x)
        self.penalties.update(penalty.detach(), len(x))
        return loss + weight * penalty

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's training loss and accuracy, and the rule and learning rate it ended with."""
        self._log_epoch("train", self.train_loss, self.train_scores)
        if self.penalties.update_called:
            self.log("train/gradient_penalty", self.penalties.compute())
            self.penalties.reset()
        if not self.rule.schedule.constant:
            self.log_dict(moment(self.sites.rule))
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def validation_step(self, batch: Batch, index: int) -> None:
        """Loss (without label smoothing) and accuracy of one batch."""
        x, labels = batch
        logits = self(x)  # also where this process has no image left: others wait for its part in the forward pass
        if not len(x):
            return
        self.val_loss.update(nn.functional.cross_entropy(logits.float(), labels), len(x))
        self.val_scores.update(logits, labels)
        self.own_scores.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation loss and accuracy."""
        self._log_epoch("val", self.val_loss, self.val_scores)
        for name, value in self.own_scores.compute().items():
            self.log(name, self._number(name, value))
        self.own_scores.reset()

    @staticmethod
    def _number(name: str, value: Any) -> Any:
        one = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
        require(one, f"metrics.{name.removeprefix('val/')}: it computes no single number, which is what can be logged.")
        return value

    def _running(self) -> list[Metric]:
        penalties = [self.penalties] if self.robust is not None and self.robust.options.gradient_penalty else []
        return [self.train_loss, *self.train_scores.values(copy_state=False), *penalties]

    def _so_far(self) -> list[dict[str, Tensor]]:
        """The running sums of the epoch's metrics, over all processes."""
        found = []
        for metric in self._running():
            with metric.sync_context(distributed_available=lambda: self.trainer.world_size > 1):
                state: dict[str, Any] = metric.metric_state
                found.append({name: value.clone() for name, value in state.items()})
        return found

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its warm-up and cosine, stepped after every batch."""
        assert self.optim is not None
        optimizer = build_optimizer(self.net, self.optim)
        steps = int(self.trainer.estimated_stepping_batches)
        done = round(steps / (self.trainer.max_epochs or 1) * self.epochs_before)
        plan: Any = {"optimizer": optimizer, **build_schedule(optimizer, self.optim, steps + done, done)}
        return plan  # type: ignore[no-any-return]  # Lightning's is a TypedDict

    def _log_epoch(self, split: str, loss: MeanMetric, scores: MetricCollection) -> None:
        values = {f"{split}/loss": loss.compute(), **scores.compute()}
        loss.reset()
        scores.reset()
        self.log_dict({key: value for key, value in values.items() if not key.endswith("acc")})
        self.log(f"{split}/acc", values[f"{split}/acc"], prog_bar=True)


def _metric(name: str, given: Mapping[str, Any], classes: int) -> Metric:
    option = f"metrics.{name}"
    targets.check_trusted(given, option)
    made: Metric = targets.make(given, option, Metric, task="multiclass", num_classes=classes)
    return made


def _mixing(classes: int, options: Plan) -> v2.Transform | None:
    mixes: list[v2.Transform] = []
    if options.mixup:
        mixes.append(v2.MixUp(alpha=float(options.mixup), num_classes=classes))
    if options.cutmix:
        mixes.append(v2.CutMix(alpha=float(options.cutmix), num_classes=classes))
    return v2.RandomChoice(mixes) if mixes else None
