"""Controls: explainers that an alignment claim must stand beside, each a callable `(model, x, target) -> maps`.

No score of smoothness, stability or localisation says anything by itself: guided backprop wins most of them and depends
on neither the weights nor the target (Adebayo et al., arXiv 1810.03292); a blur wins the rest. All maps are of the
centred logit, f_c minus the mean logit: the mean is free in a softmax, and would be the same part of every class's map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import require
from softgate.explainers.base import Explainer
from softgate.explainers.gradients import Pullback, leaky_rule, smoothgrad
from softgate.explainers.guided import guided_backprop
from softgate.metrics.blur import blur
from softgate.metrics.randomization import randomized
from softgate.metrics.smoothness import high_frequency
from softgate.sites.inference import inner
from softgate.surrogate.inputs import checked
from softgate.surrogate.rule import Surrogate

LEAK = 0.1
"""The leaky gates of a control table: published tables have it so, `leaky_backward` itself is steeper."""


def _centred_gradient() -> Pullback:
    return Pullback(None, centred=True)


def _centred_pullback() -> Pullback:
    return Pullback(Surrogate(), centred=True)


@dataclass(frozen=True)
class Blurred:
    """Another explainer's maps, each blurred until its share of high frequencies is that of a reference's map.

    Says what smoothness alone is worth. Where the map is as smooth already, it stays as it is.

    Args:
        explainer: Whose maps are blurred; the gradient by default.
        reference: Whose share of high frequencies is met; the excitation pullback by default.
        rounds: Of the bisection for the blur's width.
    """

    explainer: Explainer = field(default_factory=_centred_gradient)
    reference: Explainer = field(default_factory=_centred_pullback)
    rounds: int = 12

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Maps [B, C, H, W]."""
        maps = self.explainer(model, x, target)
        goals = high_frequency(self.reference(model, x, target)).tolist()
        return torch.cat([self._meet(one[None], goal) for one, goal in zip(maps, goals, strict=True)])

    def _meet(self, one: Tensor, goal: float) -> Tensor:
        low, high = 0.0, min(one.shape[-2:]) / 4
        if not float(high_frequency(one)) > goal:  # also where either is NaN
            return one
        for _ in range(self.rounds):
            middle = (low + high) / 2
            low, high = (middle, high) if float(high_frequency(blur(one, middle))) > goal else (low, middle)
        return blur(one, high)


@dataclass(frozen=True)
class EdgeFilter:
    """The magnitude of the image's Sobel gradient: looks like an explanation, knows neither model nor target."""

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Maps [B, C, H, W]."""
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(x)
        kernels = torch.stack([across, across.T])[:, None]
        padded = F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, kernels).square().sum(1).sqrt().view_as(x)


@dataclass
class RandomWeights:
    """Another explainer on the network with all weights drawn anew, its BatchNorm statistics re-estimated.

    What it scores is what the architecture and the gates alone are worth.

    Args:
        images: [N, C, H, W] to re-estimate the statistics with.
        explainer: The excitation pullback by default.
        seed: Of the weights.
    """

    images: Tensor
    explainer: Explainer = field(default_factory=_centred_pullback)
    seed: int = 0
    _made: tuple[nn.Module, nn.Module] | None = field(default=None, init=False, repr=False)

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Maps [B, C, H, W]."""
        model = inner(model)
        if self._made is None or self._made[0] is not model:
            self._made = model, randomized(model, "all", self.images.to(x), self.seed)
        return self.explainer(self._made[1], x, target)


@checked
def standard(rule: Surrogate, images: Tensor, passes: int = 10) -> Mapping[str, Explainer]:
    """The explainers of a control table, by name: the gradient, the pullback, and what they must be held against.

    Args:
        rule: The rule of the pullback.
        images: [N, C, H, W] to re-estimate BatchNorm statistics of random networks with.
        passes: Of SmoothGrad.

    Returns:
        Name to explainer, the two in question first.
    """
    require(rule.soft, "readout: its gates are hard; the pullback would be the gradient.")
    gradient, pullback = Pullback(None, centred=True), Pullback(rule, centred=True)
    return {
        "gradient": gradient,
        "pullback": pullback,
        "random weights": RandomWeights(images, pullback),
        "SmoothGrad": partial(smoothgrad, samples=passes, centred=True),
        "guided backprop": partial(guided_backprop, centred=True),
        "leaky backward": Pullback(leaky_rule(LEAK), centred=True),
        "blurred gradient": Blurred(gradient, pullback),
        "edge filter": EdgeFilter(),
    }
