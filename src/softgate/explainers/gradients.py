"""Explanations by one or several backward passes to the pixels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import NoCallSites, SoftgateError, UnreachableSites, require
from softgate.explainers.pullback import pullback, require_classes, target_logits
from softgate.sites.calls import ActivationCall, PoolCall, SiteCall, SiteId
from softgate.sites.checks import RELU_NODES, nodes_between
from softgate.sites.forward import State
from softgate.sites.inference import inner, reading_out
from softgate.surrogate import gates, pools
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import Kind

Explainer = Callable[[nn.Module, Tensor, Any], Tensor]
"""(model, x [B, C, H, W], target: int or [B]) -> [B, C, H, W]."""


@dataclass(frozen=True)
class ExcitationPullback:
    """The pullback under a rule, as an explainer (paper, equation 21).

    Args:
        rule: The backward rule.
    """

    rule: Surrogate = field(default_factory=Surrogate)

    def __call__(self, model: nn.Module, x: Tensor, target: Any) -> Tensor:
        """The pullback [B, C, H, W]."""
        return pullback(model, x, classes(x, target), self.rule)


def gradient(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    """The input gradient of the target logit."""
    return pullback(model, x, classes(x, target), None)


def leaky_backward(model: nn.Module, x: Tensor, target: Any, slope: float = 0.3) -> Tensor:
    """The pullback under leaky gates (ProxyGrad, arXiv 2410.16958); max pools keep their true gradient.

    Args:
        model: As for every explainer.
        x: As for every explainer.
        target: As for every explainer.
        slope: The gate below zero.
    """
    rule = Surrogate(gate=gates.Leaky(slope=slope), pool=pools.Hard())
    return pullback(model, x, classes(x, target), rule)


def input_x_gradient(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    """Input times gradient, by captum."""
    return _captum("InputXGradient", model, x, target)


def integrated_gradients(
    model: nn.Module, x: Tensor, target: Any, steps: int = 32, baseline: Tensor | float = 0.0
) -> Tensor:
    """Integrated gradients (arXiv 1703.01365) from a baseline image, by captum.

    Args:
        model: As for every explainer.
        x: As for every explainer.
        target: As for every explainer.
        steps: Points of the Gauss-Legendre rule; each is a forward and a backward pass.
        baseline: The image it starts from, in the model's units; 0 is the mean colour of normalised images.
    """
    require(isinstance(steps, int) and steps >= 1, f"integrated_gradients: steps={steps}: at least 1 is needed.")
    settings: dict[str, Any] = {"n_steps": steps, "baselines": baseline, "internal_batch_size": max(len(x), 32)}
    return _captum("IntegratedGradients", model, x, target, **settings)


def smoothgrad(
    model: nn.Module, x: Tensor, target: Any, samples: int = 10, noise: float = 0.15, seed: int = 0
) -> Tensor:
    """SmoothGrad (arXiv 1706.03825): the mean gradient over noisy copies of the image, by captum.

    Args:
        model: As for every explainer.
        x: As for every explainer.
        target: As for every explainer.
        samples: Noisy copies; each is a forward and a backward pass.
        noise: Standard deviation of the noise, as a share of each image's range of values.
        seed: Of the noise; the same for every call, so that curves over epochs show the model's change.
    """
    require(isinstance(samples, int) and samples >= 1, f"smoothgrad: samples={samples}: at least 1 is needed.")
    require(noise > 0, f"smoothgrad: noise={noise}: a number > 0 is needed.")
    wanted = classes(x, target)
    parts = []
    for index in range(len(x)):  # captum's noise has one size for a whole batch
        image = x[index : index + 1]
        settings = {"nt_samples": samples, "stdevs": noise * float(image.max() - image.min()), "nt_type": "smoothgrad"}
        parts.append(_captum("Saliency", model, image, wanted[index : index + 1], seed, **settings))
    return torch.cat(parts)


def guided_backprop(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    """Guided backpropagation (arXiv 1412.6806): every ReLU passes on what is positive of the gradient only.

    captum's form hooks ReLU modules and misses functional and repeated calls; this one stands at the call sites, as
    `softgate.attach` does.

    Raises:
        NoCallSites: If the model has no ReLU.
        UnreachableSites: If it has other activations, or ReLUs in scripted code.
    """
    return guided(model, x, classes(x, target))


def guided(model: nn.Module, x: Tensor, targets: Tensor, centred: bool = False) -> Tensor:
    """`guided_backprop` for targets [B], and on request of the logit minus the mean logit."""
    model = inner(model)
    guide = _Guiding()
    with reading_out(model, None) as sites:
        image = x.detach().clone().requires_grad_()
        with sites.handled_by(guide):
            out: Any = model(image)
        logits: Tensor = getattr(out, "logits", out)
        picked = target_logits(logits, targets[:, None].to(x.device), centred).sum()
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

    def __init__(self) -> None:
        self.count = 0
        self.missed: list[str] = []

    def handle(self, call: SiteCall, site: SiteId, state: State) -> Any:
        """The guided ReLU of a ReLU's call; what other calls return anyway."""
        if isinstance(call, ActivationCall) and call.kind == Kind.RELU:
            self.count += 1
            out: Any = _GuidedReLU.apply(call.z.clone() if call.inplace else call.z)
            return call.z.copy_(out) if call.inplace else out
        if not isinstance(call, PoolCall) and "pool" not in call.kind:
            self.missed.append(call.kind)
        return call.original()


def classes(x: Tensor, target: Any) -> Tensor:
    """The target of each image, [B], from an int or a [B] tensor."""
    kind = "an int or a [B] tensor is needed"
    try:
        given = torch.as_tensor(target, device=x.device)
    except (TypeError, ValueError, RuntimeError):
        raise SoftgateError(f"target={target}: {kind}.") from None
    fits = given.dim() == 0 or tuple(given.shape) == (len(x),)
    require(fits and not given.is_floating_point() and given.dtype != torch.bool, f"target={target}: {kind}.")
    return given.long().expand(len(x)).contiguous()


def captum_attr() -> Any:
    """The module captum.attr.

    Raises:
        SoftgateError: If captum is not installed; the message names the extra it comes with.
    """
    try:
        return importlib.import_module("captum.attr")
    except ImportError:
        raise SoftgateError(
            "captum is not installed; it comes with the extra 'explain': pip install 'softgate[explain]'."
        ) from None


def _captum(name: str, model: nn.Module, x: Tensor, target: Any, seed: int = 0, **settings: Any) -> Tensor:
    attr, model, wanted = captum_attr(), inner(model), classes(x, target)

    def logits(images: Tensor) -> Tensor:
        out: Any = model(images)
        found: Tensor = getattr(out, "logits", out)
        require_classes(found, wanted)
        return found

    method = getattr(attr, name)(logits)
    if name == "Saliency":  # captum's name for the gradient, whose sign we keep
        method, settings = attr.NoiseTunnel(method), settings | {"abs": False}
    with reading_out(model, None):
        torch.manual_seed(seed)  # the caller's random state is restored by reading_out
        found: Tensor = method.attribute(x.detach().clone().requires_grad_(), target=wanted, **settings)
    return found.detach().to(x.dtype)
