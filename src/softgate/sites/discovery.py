"""What can be known of a model's call sites before its first forward pass.

The machinery of `softgate.sites`: symbolic traces in train and in eval mode, and what follows from them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from softgate.sites.calls import METHODS, Call
from softgate.sites.forward import Mode, State, running
from softgate.sites.tracing import CallSiteTracer, reads_alone, undisturbed

if TYPE_CHECKING:
    from softgate.sites.sites import Sites

SWITCHABLE = (nn.ReLU, nn.Hardtanh, nn.LeakyReLU)
"""Modules whose `inplace` flag can be switched off; nn.ReLU6 is a Hardtanh."""


def opaque_parts(model: nn.Module) -> list[str]:
    """The parts of a model whose calls Python does not see."""
    return [
        f"{name} (scripted or compiled)"
        for name, module in model.named_modules()
        if isinstance(module, torch.jit.ScriptModule)
        or hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None)
    ]


def trace(sites: Sites, flipped: bool = False) -> list[Call] | None:
    """The calls of a symbolic forward pass, or of one with train and eval mode swapped; None if it fails."""
    state, states = State(), running()
    calls: list[Call] = []
    state.frame, state.trace = sites.frames[0], calls

    def method(name: str, node: fx.Node) -> None:
        calls.append(Call(sites.count_call(state, "relu"), "relu", True, METHODS[name], node))

    def operator(name: str) -> None:
        calls.append(Call(f"torch.ops.{name}", name, False, False, None))

    states[id(sites)] = state
    try:
        with warnings.catch_warnings(), undisturbed(sites.model), Mode(sites, state):
            warnings.simplefilter("ignore")  # about symbols where users' hooks and checkpoints expect tensors
            if flipped:
                for module in sites.model.modules():
                    module.training = not module.training
            CallSiteTracer(method, operator).trace(sites.model)
    except Exception:
        # Tracing runs the user's forward on symbols; whatever it raises means: wait for the first forward.
        return None
    finally:
        del states[id(sites)]
    return calls


def avoid_inplace(model: nn.Module, calls: Iterable[Call]) -> tuple[set[str], list[nn.Module]]:
    """Switches in-place off where the traces, in train and in eval mode, show that nobody needs it.

    Args:
        model: The model that was traced.
        calls: Its in-place calls.

    Returns:
        The call sites that need not work in place, and the modules whose `inplace` was switched off.
    """
    calls = list(calls)
    needed = {call.name.split("#")[0] for call in calls if not reads_alone(call, model)}
    fresh = {call.name for call in calls if call.name.split("#")[0] not in needed}
    switched: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, SWITCHABLE) and module.inplace and name in fresh:
            module.inplace = False
            switched.append(module)
    return fresh, switched
