"""Controls: explainers that an alignment claim must stand beside, each a callable `(model, x, target) -> maps`.

No score of smoothness, stability or localisation says anything by itself: guided backprop wins most of them and depends
on neither the weights nor the target (Adebayo et al., arXiv 1810.03292); a blur wins the rest. All maps are of the
centred logit, f_c minus the mean logit: the mean is free in a softmax, and would be the same part of every class's map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import require
from softgate.explainers.gradients import guided
from softgate.explainers.pullback import target_logits
from softgate.metrics.base import Explainer
from softgate.metrics.blur import blur
from softgate.metrics.high_frequency import high_frequency
from softgate.metrics.noise import draws
from softgate.metrics.randomization import randomized
from softgate.sites.inference import inner, reading_out
from softgate.surrogate import gates, pools
from softgate.surrogate.rule import Surrogate


@dataclass(frozen=True)
class Pullback:
    """The pullback of the centred target logit under a rule; None is the gradient.

    Args:
        rule: The backward rule.
    """

    rule: Surrogate | None = None

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Maps [B, C, H, W] for images [B, C, H, W] and targets [B]."""
        return _input_gradient(model, x, target, self.rule)

    def all(self, model: nn.Module, x: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Maps [B, K, C, H, W] of K classes from one forward pass, and the logits [B, classes]."""
        model = inner(model)
        with reading_out(model, self.rule):
            x = x.detach().clone().requires_grad_()
            out: Any = model(x)
            outputs = getattr(out, "logits", out)
            targets = torch.tensor(list(classes), device=x.device).expand(len(x), -1)
            picked = target_logits(outputs, targets, centred=True).sum(0)
            maps = [torch.autograd.grad(one, x, retain_graph=True)[0] for one in picked]
        return torch.stack(maps, 1), outputs.detach()


def gradient() -> Pullback:
    """The vanilla gradient."""
    return Pullback(None)


def leaky_backward(slope: float = 0.1) -> Pullback:
    """The gradient with 1 where a ReLU is on and `slope` where it is off: another soft backward pass."""
    return Pullback(Surrogate(gate=gates.Leaky(slope), pool=pools.Hard()))


@dataclass(frozen=True)
class SmoothGrad:
    """The mean gradient over noisy copies (Smilkov et al., arXiv 1706.03825).

    Args:
        passes: Copies; the number of passes the other explainer takes, for a fair match.
        scale: Standard deviation of the noise, as a share of each image's range.
        seed: Of the noise, which is drawn from the pixels.
    """

    passes: int = 10
    scale: float = 0.15
    seed: int = 0

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Maps [B, C, H, W]."""
        spread = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
        maps = torch.zeros_like(x)
        for noise in draws(x, self.passes, self.seed):
            maps += _input_gradient(model, x + self.scale * spread * noise, target, None)
        return maps / self.passes


@dataclass(frozen=True)
class GuidedBackprop:
    """The gradient, with negative gradients dropped at every ReLU on the way (Springenberg et al., arXiv 1412.6806).

    Known to be unfaithful: it recovers edges of the input, whatever the weights of the upper layers and the target.
    """

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Maps [B, C, H, W].

        Raises:
            SoftgateError: If the model has no ReLU, or other activations, on which it would be the plain gradient.
        """
        return guided(model, x, target, centred=True)


@dataclass(frozen=True)
class Blurred:
    """Another explainer's maps, each blurred until its share of high frequencies is that of a reference's map.

    Says what smoothness alone is worth. Where the map is as smooth already, it stays as it is.

    Args:
        explainer: Whose maps are blurred; the gradient by default.
        reference: Whose share of high frequencies is met; the excitation pullback by default.
        rounds: Of the bisection for the blur's width.
    """

    explainer: Explainer = field(default_factory=gradient)
    reference: Explainer = field(default_factory=lambda: Pullback(Surrogate()))
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
    explainer: Explainer = field(default_factory=lambda: Pullback(Surrogate()))
    seed: int = 0
    _made: tuple[nn.Module, nn.Module] | None = field(default=None, init=False, repr=False)

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Maps [B, C, H, W]."""
        model = inner(model)
        if self._made is None or self._made[0] is not model:
            self._made = model, randomized(model, "all", self.images.to(x), self.seed)
        return self.explainer(self._made[1], x, target)


def standard(rule: Surrogate, images: Tensor, passes: int = 10) -> Mapping[str, Explainer]:
    """The explainers of a control table, by name: the gradient, the pullback, and what they must be held against.

    Args:
        rule: The rule of the pullback.
        images: [N, C, H, W] to re-estimate BatchNorm statistics of random networks with.
        passes: Of SmoothGrad.

    Returns:
        Name to explainer, the two in question first.
    """
    require(rule.softens_relu or rule.softens_pool, "readout: its gates are hard; the pullback would be the gradient.")
    pullback = Pullback(rule)
    return {
        "gradient": gradient(),
        "pullback": pullback,
        "random weights": RandomWeights(images, pullback),
        "SmoothGrad": SmoothGrad(passes),
        "guided backprop": GuidedBackprop(),
        "leaky backward": leaky_backward(),
        "blurred gradient": Blurred(gradient(), pullback),
        "edge filter": EdgeFilter(),
    }


def _input_gradient(model: nn.Module, x: Tensor, target: Tensor, rule: Surrogate | None) -> Tensor:
    model = inner(model)
    with reading_out(model, rule):
        x = x.detach().clone().requires_grad_()
        out: Any = model(x)
        picked = target_logits(getattr(out, "logits", out), target[:, None].to(x.device), centred=True)
        found: Tensor = torch.autograd.grad(picked.sum(), x)[0]
    return found
