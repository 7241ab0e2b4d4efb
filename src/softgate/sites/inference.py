"""Running a network for a look at it: eval mode, a rule of its own, and everything as before afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from softgate.sites.sites import Sites, attached_sites
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.schedule import Schedule


@contextmanager
def reading_out(model: nn.Module, rule: Surrogate | None) -> Iterator[Sites]:
    """Runs the block with `rule` in force, in eval mode and with gradients on; then everything is as before.

    BatchNorm must use its running statistics: in train mode the images of a batch would read each other, and a
    look at the network would change it. A rule's schedule plays no part.
    """
    sites = attached_sites(model)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    temporary = sites is None
    if sites is None:
        sites = Sites(model, rule, discover=rule is not None and not rule.sites.everything)
    training = [module for module in model.modules() if module.training]
    lasting = rule if rule is None else replace(rule, schedule=Schedule())
    try:
        for module in training:
            module.training = False
        with (
            sites.use(lasting),
            eagerly(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices),
        ):
            yield sites
    finally:
        for module in training:
            module.training = True
        if temporary:
            sites.detach()


def eagerly() -> AbstractContextManager[Any]:
    """Runs the block without compiling: a compiled model need not be compiled anew for a look.

    Where the compiler was never imported nothing can be compiled, and it need not be imported now.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def inner(model: nn.Module) -> nn.Module:
    """The network within torch.compile's, DistributedDataParallel's and DataParallel's wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]  # the wrapper is untyped
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model
