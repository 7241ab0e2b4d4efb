"""Optimisers and the learning-rate schedule, from the options of `optim=`."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from softgate import targets
from softgate.training.optim_config import COSINE, OptimConfig, Plan, TargetOptim


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
