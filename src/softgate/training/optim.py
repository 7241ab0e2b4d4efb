"""Optimisers and the learning-rate schedule, from the options of `optim=`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from softgate.errors import SoftgateError, is_number, require, unknown

OPTIMIZERS = ("sgd", "adamw")


def check(options: Mapping[str, Any]) -> None:
    """Raises `SoftgateError` for options of `optim=` that are out of range."""
    if options.get("name") not in OPTIMIZERS:
        raise unknown("optim.name", options.get("name"), OPTIMIZERS)
    above = {"lr": False}
    ranges = {
        "lr": (0.0, math.inf),
        "momentum": (0.0, 1.0),
        "weight_decay": (0.0, math.inf),
        "warmup": (0.0, 1.0),
        "label_smoothing": (0.0, 1.0),
        "mixup": (0.0, math.inf),
        "cutmix": (0.0, math.inf),
    }
    for key, (low, high) in ranges.items():
        value = options.get(key, low)
        number = is_number(value) and math.isfinite(value)
        fine = number and low <= value <= high and not (key in above and value == low)
        least = ">" if key in above else ">="
        most = "" if math.isinf(high) else f" and <= {high:g}"
        if key == "momentum":
            fine, most = fine and value < 1, " and < 1"
        require(bool(fine), f"optim.{key}={value}: a number {least} {low:g}{most} is needed.")


def build_optimizer(net: nn.Module, options: Mapping[str, Any]) -> Optimizer:
    """The optimiser over a network's parameters, without weight decay on norms and biases.

    Args:
        net: The network.
        options: `name`, `lr`, `momentum`, `weight_decay`.

    Returns:
        SGD with Nesterov momentum, or AdamW.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options["weight_decay"]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    momentum = float(options["momentum"])
    if options["name"] == "sgd":
        return SGD(groups, lr=options["lr"], momentum=momentum, nesterov=momentum > 0)
    if options["name"] == "adamw":
        return AdamW(groups, lr=options["lr"], betas=(momentum, 0.999))
    raise SoftgateError(f"optim.name={options['name']}: allowed: {', '.join(OPTIMIZERS)}.")


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Linear warm-up over a share `warmup` of `steps`, then a cosine to zero at the last step."""
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        progress = (step - rise) / max(1, steps - rise)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)
