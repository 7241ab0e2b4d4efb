"""Optimisers and the learning-rate schedule, from the options of `optim=`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from softgate import targets
from softgate.errors import require
from softgate.options import Number, Options

Share = Annotated[Number, Field(ge=0, le=1)]
COSINE = "cosine"


class Plan(Options):
    """What every choice of `optim=` has: the learning rate over the run, and what softens the labels."""

    at: ClassVar[str] = "optim"

    warmup: Share = Field(0.0, description="share of all steps in which the rate climbs")
    label_smoothing: Share = Field(0.0, description="share of the target spread over all classes")
    mixup: Annotated[Number, Field(ge=0)] = Field(0.0, description="alpha of mixup's Beta distribution; 0 is off")
    cutmix: Annotated[Number, Field(ge=0)] = Field(0.0, description="alpha of cutmix's Beta distribution; 0 is off")
    scheduler: Any = Field(COSINE, description="cosine, null for a constant rate, or a target of an LRScheduler")
    interval: Literal["step", "epoch"] = Field("epoch", description="when a scheduler of one's own is stepped")
    monitor: str = Field("val/loss", description="what ReduceLROnPlateau looks at")

    @model_validator(mode="after")
    def _scheduled(self) -> Self:
        own = isinstance(self.scheduler, Mapping) and targets.KEY in self.scheduler
        fine = own or self.scheduler in (None, COSINE)
        require(fine, f"optim.scheduler={self.scheduler}: cosine, null or a _target_ with its arguments is needed.")
        if own:
            targets.check(self.scheduler, "optim.scheduler", (LRScheduler, ReduceLROnPlateau))
            targets.check_arguments(self.scheduler, "optim.scheduler", ["*"])
        require(own or self.interval == "epoch", "optim.interval=step: it is for an optim.scheduler of your own.")
        plain = own or self.warmup == 0 or self.scheduler == COSINE
        require(plain, f"optim.warmup={self.warmup}: with optim.scheduler=null the rate is constant; 0 is needed.")
        return self


class OptimConfig(Plan):
    """The options of `optim=`: SGD or AdamW, its learning rate over the run, and what softens the targets."""

    name: Literal["sgd", "adamw"] = Field(description="SGD with Nesterov momentum, or AdamW")
    lr: Annotated[Number, Field(gt=0)] = Field(description="peak learning rate")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(0.0, description="Nesterov's, or AdamW's beta1")
    weight_decay: Annotated[Number, Field(ge=0)] = Field(0.0, description="not applied to norms and biases")


class TargetOptim(Plan):
    """The options of `optim=` with a `_target_`: any optimiser of PyTorch's kind, with its own arguments."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    target: str = Field(alias="_target_", description="dotted name of an Optimizer, given the parameters first")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        targets.check(self.plain_target, "optim", Optimizer)
        targets.check_arguments(self.plain_target, "optim", ["*"])
        return self

    @property
    def plain_target(self) -> dict[str, Any]:
        """`_target_` and the arguments."""
        return {"_target_": self.target, **(self.model_extra or {})}


def read_optim(given: Any) -> Any:
    """The options of `optim=`, of either kind."""
    if isinstance(given, Options):
        return given
    own = isinstance(given, Mapping) and targets.KEY in given
    return TargetOptim.read(given) if own else OptimConfig.read(given)


def build_optimizer(net: nn.Module, options: OptimConfig | TargetOptim) -> Optimizer:
    """The optimiser over a network's parameters.

    Args:
        net: The network.
        options: Those of `optim=`.

    Returns:
        SGD with Nesterov momentum, or AdamW, without weight decay on norms and biases; or that of a target, which is
        given all parameters alike.

    Raises:
        SoftgateError: If a target cannot be called so, or returns no optimiser.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    if isinstance(options, TargetOptim):
        targets.check_trusted(options.plain_target, "optim")
        made: Optimizer = targets.make(options.plain_target, "optim", Optimizer, parameters)
        return made
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    momentum = float(options.momentum)
    if options.name == "sgd":
        return SGD(groups, lr=options.lr, momentum=momentum, nesterov=momentum > 0)
    return AdamW(groups, lr=options.lr, betas=(momentum, 0.999))


def build_schedule(optimizer: Optimizer, options: Plan, steps: int, done: int = 0) -> dict[str, Any]:
    """What Lightning is told of the learning rate over the run; nothing where it is constant.

    Args:
        optimizer: The optimiser.
        options: Those of `optim=`.
        steps: Optimiser steps of the run; a scheduler's argument `total_steps` is filled with it.
        done: How many of these steps lie behind the weights already; the cosine goes on from there.
    """
    if options.scheduler is None:
        return {}
    if options.scheduler == COSINE:
        schedule: Any = warmup_cosine(optimizer, steps, float(options.warmup), done)
        return {"lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}
    targets.check_trusted(options.scheduler, "optim.scheduler")
    kinds = (LRScheduler, ReduceLROnPlateau)
    schedule = targets.make(options.scheduler, "optim.scheduler", kinds, optimizer, total_steps=steps)
    told = {"scheduler": schedule, "interval": options.interval, "name": "lr"}
    return {"lr_scheduler": told | ({"monitor": options.monitor} if isinstance(schedule, ReduceLROnPlateau) else {})}


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: float, done: int = 0) -> LambdaLR:
    """Linear warm-up over a share `warmup` of `steps`, then a cosine to zero at the last; `done` of them are past."""
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        step += done
        if step < rise:
            return (step + 1) / (rise + 1)
        progress = (step - rise) / max(1, steps - rise)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)
