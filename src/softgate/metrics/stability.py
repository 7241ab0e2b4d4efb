"""Does the map survive a small change of the image? Against the maps of noisy copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require
from softgate.explainers.base import Explainer
from softgate.explainers.noise import draws
from softgate.metrics.base import ProbeMetric, cosine, finite, flat, logits
from softgate.surrogate.inputs import checked


@checked
def noise_cosine(maps: Tensor, noisy: Tensor) -> Tensor:
    r"""Mean over draws of :math:`\cos(v(x), v(x + \eta_j))` for each image.

    Args:
        maps: [B, C, H, W].
        noisy: [draws, B, C, H, W] maps of the noisy copies.

    Returns:
        [B] in [-1, 1]; NaN where a map is zero.
    """
    clean = flat(maps)
    return torch.stack([cosine(clean, flat(one)) for one in noisy]).mean(0)


class NoiseCosine(ProbeMetric):
    r"""Mean :math:`\cos(v(x), v(x + \eta))`, :math:`\eta \sim N(0, scale^2)`.

    The noise of an image is drawn from its pixels and `seed`: the same in every epoch, run, batch and process.

    Source: hyper-local noise, the paper 4.1.

    Args:
        explainer: Gives the maps.
        scale: Standard deviation of the noise, in units of the (normalised) input.
        count: Draws per image.
        seed: Of the draws.
        kwargs: Of `torchmetrics.Metric`.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    >>> metric = NoiseCosine(lambda model, x, target: model[1].weight[target].view_as(x))
    >>> metric.update(net, torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(self, explainer: Explainer, scale: float = 0.02, count: int = 10, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        require(scale > 0 and count >= 1, f"noise_cosine: scale={scale}, count={count}: > 0 and >= 1 are needed.")
        self.explainer, self.scale, self.count, self.seed = explainer, scale, count, seed

    def update(self, model: nn.Module, x: Tensor, target: Tensor) -> None:
        """Takes images [B, C, H, W] and targets [B]."""
        maps = self.explainer(model, x, target)
        noise = self.scale * draws(x, self.count, self.seed)
        noisy = torch.stack([self.explainer(model, x + one, target) for one in noise])
        self.add(noise_cosine(maps, noisy), finite(maps, noisy.transpose(0, 1), logits(model, x)))


@checked
def max_sensitivity(maps: Tensor, noisy: Tensor) -> Tensor:
    r""":math:`\max_j \|v(x + d_j) - v(x)\| / \|v(x)\|` for each image.

    Args:
        maps: [B, C, H, W].
        noisy: [draws, B, C, H, W] maps of the perturbed copies.

    Returns:
        [B], >= 0; NaN where v(x) is zero.
    """
    clean = flat(maps)
    size = clean.norm(dim=1)
    return torch.stack([(flat(one) - clean).norm(dim=1) / size for one in noisy]).amax(0).where(size > 0, torch.nan)


class MaxSensitivity(ProbeMetric):
    r"""Mean over images of :math:`\max_j \|v(x + d_j) - v(x)\| / \|v(x)\|`, d uniform in a box of half-width `radius`.

    About 1.41 for maps that have nothing to do with each other. Partly mechanical: soft gates halve it on a network
    with random weights already.

    Source: Yeh et al., arXiv 1901.09392; captum's `sensitivity_max`.

    Args:
        explainer: Gives the maps.
        radius: Half-width of the box, in units of the (normalised) input.
        count: Draws per image.
        seed: Of the draws.
        kwargs: Of `torchmetrics.Metric`.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    >>> metric = MaxSensitivity(lambda model, x, target: model[1].weight[target].view_as(x))
    >>> metric.update(net, torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))
    >>> metric.compute()
    tensor(0., dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, explainer: Explainer, radius: float = 0.02, count: int = 10, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        require(radius > 0 and count >= 1, f"max_sensitivity: radius={radius}, count={count}: > 0 and >= 1 are needed.")
        self.explainer, self.radius, self.count, self.seed = explainer, radius, count, seed

    def update(self, model: nn.Module, x: Tensor, target: Tensor) -> None:
        """Takes images [B, C, H, W] and targets [B]."""
        maps = self.explainer(model, x, target)
        steps = self.radius * draws(x, self.count, self.seed, "uniform")
        noisy = torch.stack([self.explainer(model, x + one, target) for one in steps])
        self.add(max_sensitivity(maps, noisy), finite(maps, noisy.transpose(0, 1), logits(model, x)))
