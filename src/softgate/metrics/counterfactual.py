"""Do steps along the map make the image one of its target? Flips, their transfer, and the gain of the logit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require
from softgate.explainers.base import Explainer
from softgate.explainers.pullback import project, unit
from softgate.metrics.base import ProbeMetric, finite, flat, logits
from softgate.surrogate.inputs import checked

REFERENCE_SIZE = 3 * 224 * 224
"""Numbers in an image of the size for which the paper's step and radius are meant."""


@checked
def counterfactuals(
    explainer: Explainer,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    steps: int = 10,
    step_size: float = 20.0,
    radius: float = 100.0,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
) -> Tensor:
    r"""Projected ascent along a map (paper 5.1): steps of one L2 norm in a ball, pixels in [-1, 1].

    Args:
        explainer: Gives the map, which is followed uphill.
        model: The classifier.
        x: [B, C, H, W] images as the model takes them: (pixels in [0, 1] - mean) / std.
        target: [B] the classes to make of them.
        steps: Number of steps.
        step_size: L2 norm of a step on the scale of pixels in [-1, 1] at d = 150528 numbers; scaled here by
            sqrt(d / 150528) to the images' own size.
        radius: Of the ball; scaled likewise.
        mean: [C] of the model's normalisation, or one number for all channels.
        std: [C] of it, or one number. The defaults say that x itself is in [-1, 1].

    Returns:
        [B, C, H, W] the perturbed images, as the model takes them. An image whose map is zero stays as it is.

    Raises:
        SoftgateError: If `mean` or `std` are of another number of channels.
    """
    for key, values in (("mean", mean), ("std", std)):
        fits = len(values) in (1, x.shape[1])
        words = f"one number for each of the {x.shape[1]} channels is needed"
        require(fits, f"counterfactual: {key}={list(values)}: {words}.")
    shift, scale = (torch.tensor(list(v), dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (mean, std))
    size = (math.prod(x.shape[1:]) / REFERENCE_SIZE) ** 0.5
    origin = ((x * scale + shift) * 2 - 1).clamp(-1, 1)
    pixels = origin
    for _ in range(steps):
        maps = explainer(model, ((pixels + 1) / 2 - shift) / scale, target)
        direction = unit(maps / scale)  # the chain rule: the map is with respect to the normalised image
        pixels = project(pixels + size * step_size * direction, origin, size * radius).clamp(-1, 1)
    return ((pixels + 1) / 2 - shift) / scale


class Counterfactual(ProbeMetric):
    """Shares of images that become their target: for the model itself, and for an independently trained evaluator.

    The model's own flips are near 1 for adversarial noise too; what transfers has features of the target. Images that
    are taken for the target beforehand do not count.

    Returns a dict: `flip` and, with an evaluator, `transfer`, both in [0, 1]; and `gain`, the mean gain of the centred
    target logit. Source: the paper 5.1; transfer after Ilyas et al., arXiv 1905.02175.

    Args:
        explainer: Gives the maps.
        evaluator: Another network for the same images and classes.
        settings: Of `counterfactuals`.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    >>> towards = lambda model, x, target: (model[1].weight[target] - model[1].weight.mean(0)).view_as(x)
    >>> metric = Counterfactual(towards, evaluator=net, step_size=1000.0, radius=5000.0)
    >>> x = torch.zeros(2, 3, 2, 2)
    >>> metric.update(net, x, 1 - net(x).argmax(1))
    >>> metric.compute()["gain"] > 0
    tensor(True)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    reason = "the map is zero, so that there is no way to go"

    def __init__(self, explainer: Explainer, evaluator: nn.Module | None = None, **settings: Any) -> None:
        super().__init__()
        for key in ("steps", "step_size", "radius"):
            value = settings.get(key, 1)
            require(value > 0, f"counterfactual: {key}={value}: a number > 0 is needed.")
        self.explainer, self.evaluator, self.settings = explainer, evaluator, settings
        self.outputs = ("flip", "gain") if evaluator is None else ("flip", "gain", "transfer")

    def update(self, model: nn.Module, x: Tensor, target: Tensor) -> None:
        """Takes images [B, C, H, W] and the classes [B] to make of them."""
        still = flat(self.explainer(model, x, target)).norm(dim=1) == 0
        changed = counterfactuals(self.explainer, model, x, target, **self.settings)
        before, after = logits(model, x).double(), logits(model, changed).double()
        gain = (after - after.mean(1, keepdim=True)) - (before - before.mean(1, keepdim=True))
        columns = [_flips(before, after, target), gain.gather(1, target[:, None])[:, 0]]
        if self.evaluator is not None:
            columns.append(_flips(logits(self.evaluator, x), logits(self.evaluator, changed), target))
        rows = torch.stack(columns, 1).masked_fill(still[:, None], torch.nan)
        self.add(rows, finite(before, after, changed))


def _flips(before: Tensor, after: Tensor, target: Tensor) -> Tensor:
    flipped = (after.argmax(1) == target).double()
    return flipped.masked_fill(before.argmax(1) == target, torch.nan)
