"""Guided backpropagation at call sites."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import NoCallSites, UnreachableSites
from softgate.explainers.base import classes
from softgate.explainers.pullback import target_logits
from softgate.sites.calls import ActivationCall, PoolCall, SiteCall, SiteId
from softgate.sites.checks import RELU_NODES, nodes_between
from softgate.sites.forward import State
from softgate.sites.inference import inner, reading_out
from softgate.surrogate.functional import injected
from softgate.surrogate.inputs import checked
from softgate.surrogate.selection import Kind


@checked
def guided_backprop(model: nn.Module, x: Tensor, target: Any, *, centred: bool = False) -> Tensor:
    """Guided backpropagation (arXiv 1412.6806): every ReLU passes on what is positive of the gradient only.

    Known to be unfaithful: it recovers edges of the input, whatever the weights of the upper layers and the target.
    captum's form hooks ReLU modules and misses functional and repeated calls; this one stands at the call sites, as
    `softgate.attach` does.

    Args:
        model: As for every explainer.
        x: As for every explainer.
        target: As for every explainer.
        centred: Explain the logit minus the mean logit.

    Raises:
        NoCallSites: If the model has no ReLU.
        UnreachableSites: If it has other activations, or ReLUs in scripted code.
    """
    model, targets = inner(model), classes(x, target)
    guide = _Guiding()
    with reading_out(model, None) as sites:
        model = sites.model
        image = x.detach().clone().requires_grad_()
        with sites.handled_by(guide):
            out: Any = model(image.clone())  # which may normalise its input in place
        logits: Tensor = getattr(out, "logits", out)
        picked = target_logits(logits, targets[:, None], centred).sum()
        kind = type(model).__name__
        hidden = [*dict.fromkeys(guide.missed), *nodes_between((image,), logits, RELU_NODES)]
        if hidden:
            raise UnreachableSites(f"guided_backprop: {kind} has activations it does not cover: {', '.join(hidden)}.")
        if not guide.count:
            raise NoCallSites(f"guided_backprop: {kind} has no ReLU.")
        found: Tensor = torch.autograd.grad(picked, image)[0].detach()
    return found


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return F.relu(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        z: Tensor = ctx.saved_tensors[0]
        return grad.clamp(min=0) * (z > 0)


class _Guiding:
    """Puts `_GuidedReLU` in the place of every ReLU of a network."""

    blocks: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.count = 0
        self.missed: list[str] = []

    def handle(self, call: SiteCall, site: SiteId, state: State) -> Any:
        """The guided ReLU of a ReLU's call; what other calls return anyway."""
        if isinstance(call, ActivationCall) and call.kind == Kind.RELU:
            self.count += 1
            if call.by is not None:  # the sign of one opens the gate of the other
                guided = _GuidedReLU.apply(injected(call.by.to(call.z.dtype), call.z))
                return injected(call.original(), guided)
            out: Any = _GuidedReLU.apply(call.z.clone() if call.inplace else call.z)
            return call.z.copy_(out) if call.inplace else out
        if not isinstance(call, PoolCall) and "pool" not in call.kind:
            self.missed.append(call.kind)
        return call.original()
