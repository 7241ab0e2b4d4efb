"""Explanations by one or several backward passes to the pixels.

Each takes `centred`: whether it explains the logit itself, or the logit minus the mean logit, which is free in a
softmax and would be the same part of every class's map.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import SoftgateError, require
from softgate.explainers.base import classes
from softgate.explainers.noise import draws
from softgate.explainers.pullback import pull, pullback, require_classes
from softgate.sites.inference import inner, reading_out
from softgate.surrogate import gates, pools
from softgate.surrogate.inputs import check_rule, checked
from softgate.surrogate.rule import Surrogate


@dataclass(frozen=True)
class Pullback:
    """The pullback under a rule, as an explainer (paper, equation 21).

    Args:
        rule: The backward rule; None is the gradient.
        centred: Explain the logit minus the mean logit.
    """

    rule: Surrogate | None = field(default_factory=Surrogate)
    centred: bool = False

    def __post_init__(self) -> None:
        check_rule(self.rule)

    @checked
    def __call__(self, model: nn.Module, x: Tensor, target: Any) -> Tensor:
        """The pullback [B, C, H, W]."""
        return pullback(model, x, classes(x, target), self.rule, centred=self.centred)

    @checked
    def all(self, model: nn.Module, x: Tensor, targets: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Maps [B, K, C, H, W] of K classes from one forward pass, and the logits [B, classes]."""
        model = inner(model)
        with reading_out(model, self.rule) as sites:
            model = sites.model
            wanted = torch.tensor(list(targets), device=x.device).expand(len(x), -1)
            outputs, maps = pull(model, x, wanted, centred=self.centred)
        return maps, outputs


ExcitationPullback = Pullback
"""The paper's name for the pullback under soft gates."""


@checked
def gradient(model: nn.Module, x: Tensor, target: Any, *, centred: bool = False) -> Tensor:
    """The input gradient of the target logit.

    Args:
        model: As for every explainer.
        x: As for every explainer.
        target: As for every explainer.
        centred: Explain the logit minus the mean logit.
    """
    return pullback(model, x, classes(x, target), None, centred=centred)


def leaky_rule(slope: float = 0.3) -> Surrogate:
    """Leaky gates, 1 where a ReLU is on and `slope` where it is off; max pools keep their true gradient."""
    return Surrogate(gate=gates.Leaky(slope=slope), pool=pools.Hard())


@checked
def leaky_backward(model: nn.Module, x: Tensor, target: Any, slope: float = 0.3, *, centred: bool = False) -> Tensor:
    """The pullback under leaky gates (ProxyGrad, arXiv 2410.16958); max pools keep their true gradient.

    Args:
        model: As for every explainer.
        x: As for every explainer.
        target: As for every explainer.
        slope: The gate below zero.
        centred: Explain the logit minus the mean logit.
    """
    return pullback(model, x, classes(x, target), leaky_rule(slope), centred=centred)


@checked
def smoothgrad(
    model: nn.Module,
    x: Tensor,
    target: Any,
    samples: int = 10,
    noise: float = 0.15,
    seed: int = 0,
    *,
    centred: bool = False,
) -> Tensor:
    """SmoothGrad (arXiv 1706.03825): the mean gradient over noisy copies of the image.

    Args:
        model: As for every explainer.
        x: As for every explainer.
        target: As for every explainer.
        samples: Noisy copies; each is a forward and a backward pass.
        noise: Standard deviation of the noise, as a share of each image's range of values.
        seed: Of the noise. With the image's own pixels it fixes the noise, whatever batch the image is in, so that
            curves over epochs show the model's change.
        centred: Explain the logit minus the mean logit.
    """
    require(isinstance(samples, int) and samples >= 1, f"smoothgrad: samples={samples}: at least 1 is needed.")
    require(noise > 0, f"smoothgrad: noise={noise}: a number > 0 is needed.")
    wanted = classes(x, target)
    spread = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
    maps = torch.zeros_like(x)
    for drawn in draws(x, samples, seed):
        maps += pullback(model, x + noise * spread * drawn, wanted, None, centred=centred)
    return maps / samples


@checked
def input_x_gradient(model: nn.Module, x: Tensor, target: Any, *, centred: bool = False) -> Tensor:
    """Input times gradient, by captum.

    Args:
        model: As for every explainer.
        x: As for every explainer.
        target: As for every explainer.
        centred: Explain the logit minus the mean logit.
    """
    return _captum("InputXGradient", model, x, target, centred)


@checked
def integrated_gradients(
    model: nn.Module, x: Tensor, target: Any, steps: int = 32, baseline: Tensor | float = 0.0, *, centred: bool = False
) -> Tensor:
    """Integrated gradients (arXiv 1703.01365) from a baseline image, by captum.

    Args:
        model: As for every explainer.
        x: As for every explainer.
        target: As for every explainer.
        steps: Points of the Gauss-Legendre rule; each is a forward and a backward pass.
        baseline: The image it starts from, in the model's units; 0 is the mean colour of normalised images.
        centred: Explain the logit minus the mean logit.
    """
    require(isinstance(steps, int) and steps >= 1, f"integrated_gradients: steps={steps}: at least 1 is needed.")
    settings: dict[str, Any] = {"n_steps": steps, "baselines": baseline, "internal_batch_size": max(len(x), 32)}
    return _captum("IntegratedGradients", model, x, target, centred, **settings)


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


def _captum(name: str, model: nn.Module, x: Tensor, target: Any, centred: bool, **settings: Any) -> Tensor:
    attr, model, wanted = captum_attr(), inner(model), classes(x, target)

    def logits(images: Tensor) -> Tensor:
        out: Any = model(images.clone())  # a model may normalise its input in place
        found: Tensor = getattr(out, "logits", out)
        require_classes(found, wanted, len(images))  # captum runs several points of each at once
        return found - found.mean(1, keepdim=True) if centred else found

    with reading_out(model, None) as sites:
        model = sites.model
        found: Tensor = getattr(attr, name)(logits).attribute(
            x.detach().clone().requires_grad_(), target=wanted, **settings
        )
    return found.detach().to(x.dtype)
