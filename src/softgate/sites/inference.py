"""Running a network for a look at it: on a copy, in eval mode, under a rule of its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from softgate.sites.randomness import own_random_numbers
from softgate.sites.scales import scales_of, tell_if_stale
from softgate.sites.sharing_copy import sharing_copy
from softgate.sites.sites import Sites, attached_sites
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.schedule import Schedule


@contextmanager
def reading_out(model: nn.Module, rule: Surrogate | None, *, differentiable: bool = False) -> Iterator[Sites]:
    """Runs the block with a copy of the network, `sites.model`, on which `rule` is in force; with gradients on.

    The copy shares the weights and is in eval mode: in train mode the images of a batch would read each other, and a
    look at the network would change it. The network itself is not touched, so any number of looks, and a training,
    can go on in other threads. A rule's schedule plays no part.

    A network that cannot be copied (scripted or sharded parts) is itself put in eval mode and under the rule for the
    time of the block, one look after the other.

    Args:
        model: The network, attached to a rule or not.
        rule: The rule for the block.
        differentiable: Whether gradients to the parameters of `sites.model` are asked for; without, they are constants.
    """
    lasting = rule if rule is None else replace(rule, schedule=Schedule())
    if rule is not None and rule.scale == "channel":
        tell_if_stale(model, scales_of(model))
    copy = sharing_copy(model, differentiable=differentiable)
    looking = _in_place(model, lasting) if copy is None else _on_copy(model, copy, lasting)
    with (
        looking as sites,
        eagerly(),
        torch.inference_mode(False),
        torch.enable_grad(),
        own_random_numbers(),
    ):
        yield sites


@contextmanager
def _on_copy(model: nn.Module, copy: nn.Module, rule: Surrogate | None) -> Iterator[Sites]:
    attached = attached_sites(model)
    sites = attached.on_copy(copy, rule) if attached is not None else Sites(copy, rule, discover=_needs_discovery(rule))
    try:
        yield sites
    finally:
        sites.detach()
        if attached is not None:
            attached.learn(sites)


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def _in_place(model: nn.Module, rule: Surrogate | None) -> Iterator[Sites]:
    with _ONE_AT_A_TIME:
        attached = attached_sites(model)
        sites = Sites(model, rule, discover=_needs_discovery(rule)) if attached is None else attached
        training = [module for module in model.modules() if module.training]
        try:
            for module in training:
                module.training = False
            with sites.use(rule):
                yield sites
        finally:
            for module in training:
                module.training = True
            if attached is None:
                sites.detach()


def _needs_discovery(rule: Surrogate | None) -> bool:
    return rule is not None and not rule.sites.everything


class _Eagerly:
    """The compiler's stance belongs to the process: the first to come sets it, the last to go puts it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.stance: Any = None

    def __enter__(self) -> None:
        with self.lock:
            if self.count == 0 and "torch._dynamo" in sys.modules:
                self.stance = torch.compiler.set_stance("force_eager")
            self.count += 1

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0 and self.stance is not None:
                self.stance.__exit__(None, None, None)
                self.stance = None


_EAGERLY = _Eagerly()


def eagerly() -> AbstractContextManager[Any]:
    """Runs the block without compiling: functions that a network compiles need not be compiled anew for a look.

    Where the compiler was never imported nothing can be compiled, and it need not be imported now. Compiled code of
    other threads runs eagerly meanwhile.
    """
    return _EAGERLY


def inner(model: nn.Module) -> nn.Module:
    """The network within torch.compile's, DistributedDataParallel's and DataParallel's wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]  # the wrapper is untyped
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model
