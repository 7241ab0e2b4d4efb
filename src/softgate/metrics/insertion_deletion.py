"""Are the pixels that the map ranks first the ones the prediction hangs on? Blurring them in order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require
from softgate.metrics.base import Explainer, ProbeMetric, finite, logits
from softgate.metrics.blur import blur
from softgate.metrics.noise import generators


def removal_curve(model: nn.Module, x: Tensor, baseline: Tensor, order: Tensor, target: Tensor, steps: int) -> Tensor:
    """The target's probability while pixels are replaced by the baseline's, in a given order.

    Args:
        model: The classifier.
        x: [B, C, H, W] images.
        baseline: [B, C, H, W] what replaces them.
        order: [B, H * W] pixel numbers, the first to go first.
        target: [B].
        steps: The curve has steps + 1 points, from no pixel to all.

    Returns:
        [B, steps + 1] probabilities.
    """
    place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=x.device).expand_as(order))
    points = []
    for step in range(steps + 1):
        gone = (place < round(order.shape[1] * step / steps)).view(len(x), 1, *x.shape[2:])
        points.append(logits(model, x.where(~gone, baseline)).double().softmax(1).gather(1, target[:, None]))
    return torch.cat(points, 1)


def area(curve: Tensor) -> Tensor:
    """The area under curves [..., points] over [0, 1], by trapezoids."""
    return (curve[..., 1:] + curve[..., :-1]).mean(-1) / 2


class InsertionDeletion(ProbeMetric):
    """How much faster than in random order the target's probability falls and returns.

    Pixels are ranked by the map times (image - blurred image), summed over channels: the first-order effect of
    replacing them. Returns a dict: `deletion`, the area under the probability in random order minus that with the most
    relevant pixels replaced first; `insertion`, that with the least relevant replaced first minus the random one. The
    blurred image is off the data, which every such curve has in it; the random order is there to take it out.

    Source: Petsiuk, Das and Saenko, arXiv 1806.07421; MoRF and LeRF of Samek et al., arXiv 1509.06321.

    Args:
        explainer: Gives the maps.
        steps: Points of each curve, less one.
        sigma: Of the blur, as a share of the shorter side.
        seed: Of the random orders, one for each image.
        kwargs: Of `torchmetrics.Metric`.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    >>> metric = InsertionDeletion(lambda model, x, target: model[1].weight[target].view_as(x))
    >>> metric.update(net, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))
    >>> sorted(metric.compute())
    ['deletion', 'insertion']
    """

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    outputs = ("deletion", "insertion")
    reason = "the map, or the image minus its blurred self, is zero, so that no pixel comes first"

    def __init__(self, explainer: Explainer, steps: int = 10, sigma: float = 0.1, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require(steps >= 1 and sigma > 0, f"insertion_deletion: steps={steps}, sigma={sigma}: >= 1, > 0 are needed.")
        self.explainer, self.steps, self.sigma, self.seed = explainer, steps, sigma, seed

    def update(self, model: nn.Module, x: Tensor, target: Tensor) -> None:
        """Takes images [B, C, H, W] and targets [B]."""
        maps = self.explainer(model, x, target)
        baseline = blur(x, self.sigma * min(x.shape[-2:]))
        gap = (x - baseline).where((x - baseline).abs() > 1e-6 * x.abs().amax((1, 2, 3), keepdim=True), 0)
        relevance = (maps.double() * gap.double()).sum(1).flatten(1)
        order = relevance.argsort(dim=1, descending=True, stable=True)
        random = torch.stack([torch.randperm(order.shape[1], generator=g) for g in generators(x, self.seed)])
        curves = [
            removal_curve(model, x, baseline, each, target, self.steps)
            for each in (order, order.flip(1), random.to(x.device))
        ]
        morf, lerf, chance = (area(curve) for curve in curves)
        rows = torch.stack([chance - morf, lerf - chance], 1)
        flat = relevance.amax(1) == relevance.amin(1)
        self.add(rows.masked_fill(flat[:, None], torch.nan), finite(maps, *curves))
