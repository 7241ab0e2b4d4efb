"""What must not go unnoticed: activations that no rule reaches, and recomputation under another rule.

The machinery of `softgate.sites`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from softgate.callsites import POOL_NODES, RELU_NODES, no_sites, nodes_between, tensors_in, unreachable
from softgate.errors import SoftgateError, UnreachableSites
from softgate.frames import Frame, State

if TYPE_CHECKING:
    from softgate.sites import Sites


def audit(sites: Sites, frame: Frame, state: State, inputs: Any, out: Any, deep: bool) -> bool:
    """Raises if a forward pass had activations that the rule does not cover, or none that it does.

    Args:
        sites: The sites.
        frame: The frame the pass began in.
        state: The state of the pass, which is over.
        inputs: What the pass was given.
        out: What it returned.
        deep: Whether to look through the autograd graph too.

    Returns:
        Whether the graph was looked through for every kind of activation.

    Raises:
        UnreachableSites: For activations out of reach.
        NoCallSites: If there was nothing to gate.
    """
    rule, name = sites.rule, type(sites.model).__name__
    if state.missed:
        raise unreachable(sites.model, state.missed)
    if frame.module is not sites.model:
        return False
    if not state.gated:
        raise no_sites(sites.model)
    if not deep or rule is None or not torch.is_grad_enabled():
        return False
    patterns = (RELU_NODES if rule.softens_relu else {}) | (POOL_NODES if rule.softens_pool else {})
    hidden = nodes_between(inputs, out, patterns)
    if hidden.total() > state.spared:
        raise UnreachableSites(
            f"{name} has activations that run outside of Python, where no rule reaches them: {', '.join(hidden)}. "
            f"Attach to the model before scripting or exporting it."
        )
    return rule.softens_relu and rule.softens_pool


def watch_recomputation(sites: Sites, out: Any) -> None:
    """Makes the backward pass of a checkpointed forward pass an error once another rule is in force.

    What a checkpoint dropped is computed again in the backward pass, under the rule that is in force by then.
    """
    governing, rule = sites.governing, sites.rule

    def check(grad: Tensor) -> None:
        if not sites.attached or sites.governing is not governing or sites.rule is not rule:
            raise SoftgateError(
                f"{type(sites.model).__name__} has activation checkpoints, and its rule was changed or detached "
                f"between the forward and the backward pass; keep the rule in force until the backward pass is done."
            )

    for tensor in tensors_in(out):
        if tensor.requires_grad:
            tensor.register_hook(check)  # type: ignore[no-untyped-call]  # torch does not annotate it


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch does not annotate it
def refuse_compiling(model: nn.Module, hidden: Iterable[str]) -> None:
    """Raises where a compiled forward pass could have gates that stay hard without anyone noticing.

    Args:
        model: The model.
        hidden: Call sites that torch.compile would not show; where there are none, no call site is known at all.

    Raises:
        UnreachableSites: For hidden call sites.
        SoftgateError: If nothing is known about the model's call sites.
    """
    name = type(model).__name__
    if hidden:
        raise UnreachableSites(
            f"{name} calls in-place functions that torch.compile hides from every rule: {', '.join(hidden)}. Write "
            f"torch.nn.functional.relu(x, inplace=True), or x.relu_(), in their place."
        )
    raise SoftgateError(
        f"{name} cannot be traced, so its call sites are not known; run one forward pass before the compiled one."
    )
