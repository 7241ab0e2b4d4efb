"""Optimisers and the learning-rate schedule, from the options of `optim=`."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from softgate.options import Number, Options


class OptimConfig(Options):
    """The options of `optim=`: an optimiser, its learning rate over the run, and what softens the targets."""

    at: ClassVar[str] = "optim"

    name: Literal["sgd", "adamw"] = Field(description="SGD with Nesterov momentum, or AdamW")
    lr: Annotated[Number, Field(gt=0)] = Field(description="peak learning rate")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(0.0, description="Nesterov's, or AdamW's beta1")
    weight_decay: Annotated[Number, Field(ge=0)] = Field(0.0, description="not applied to norms and biases")
    warmup: Annotated[Number, Field(ge=0, le=1)] = Field(0.0, description="share of all steps in which the rate climbs")
    label_smoothing: Annotated[Number, Field(ge=0, le=1)] = Field(
        0.0, description="share of the target spread over all classes"
    )
    mixup: Annotated[Number, Field(ge=0)] = Field(0.0, description="alpha of mixup's Beta distribution; 0 is off")
    cutmix: Annotated[Number, Field(ge=0)] = Field(0.0, description="alpha of cutmix's Beta distribution; 0 is off")


def build_optimizer(net: nn.Module, options: OptimConfig) -> Optimizer:
    """The optimiser over a network's parameters, without weight decay on norms and biases.

    Args:
        net: The network.
        options: Those of `optim=`.

    Returns:
        SGD with Nesterov momentum, or AdamW.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    momentum = float(options.momentum)
    if options.name == "sgd":
        return SGD(groups, lr=options.lr, momentum=momentum, nesterov=momentum > 0)
    return AdamW(groups, lr=options.lr, betas=(momentum, 0.999))


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Linear warm-up over a share `warmup` of `steps`, then a cosine to zero at the last step."""
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        progress = (step - rise) / max(1, steps - rise)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)
