"""Does the map predict what a change of the image does to the logit? The unexplained share, whatever the scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require
from softgate.metrics.base import Explainer, ProbeMetric, cosine, finite, logits
from softgate.metrics.noise import generators


def infidelity(products: Tensor, changes: Tensor) -> Tensor:
    r""":math:`1 - \cos^2(\langle v, I_j \rangle_j, (f(x) - f(x - I_j))_j)` for each image.

    Args:
        products: [B, draws] inner products of map and perturbation.
        changes: [B, draws] what the perturbation takes from the logit.

    Returns:
        [B] in [0, 1]; NaN where either is all zero.
    """
    return 1 - cosine(products.double(), changes.double()).square()


def squares(x: Tensor, count: int, share: float, seed: int) -> Tensor:
    """Perturbations [count, B, C, H, W]: the image within a random square, zero elsewhere.

    Taking one away leaves the data's mean pixel, which is zero after normalisation, in the square.

    Args:
        x: [B, C, H, W].
        count: Draws per image.
        share: Side of the square as a share of the image's.
        seed: Of the places, one stream for each image.
    """
    height, width = x.shape[-2:]
    h, w = (max(1, round(share * n)) for n in (height, width))
    made = torch.zeros(count, *x.shape, dtype=x.dtype, device=x.device)
    for i, generator in enumerate(generators(x, seed)):
        tops = torch.randint(height - h + 1, (count,), generator=generator).tolist()
        lefts = torch.randint(width - w + 1, (count,), generator=generator).tolist()
        for j, (top, left) in enumerate(zip(tops, lefts, strict=True)):
            made[j, i, :, top : top + h, left : left + w] = x[i, :, top : top + h, left : left + w]
    return made


class Infidelity(ProbeMetric):
    r"""Mean of :math:`1 - \cos^2(\langle v, I \rangle, f(x) - f(x - I))` over squares I of the image.

    Source: Yeh et al., arXiv 1901.09392, made free of the scale of logits and maps: with the best factor on the map,
    captum's normalised infidelity is this times the mean square of the changes. Logits are centred.

    Args:
        explainer: Gives the maps.
        count: Perturbations per image.
        share: Side of the squares as a share of the image's.
        seed: Of their places.
        kwargs: Of `torchmetrics.Metric`.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    >>> weights = lambda model, target: model[1].weight[target] - model[1].weight.mean(0)
    >>> metric = Infidelity(lambda model, x, target: weights(model, target).view_as(x))
    >>> metric.update(net, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))
    >>> print(f"{metric.compute().abs():.6f}")  # a linear network has no infidelity
    0.000000
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    reason = "the map or the image is zero, or no change of the image changes the logit"

    def __init__(self, explainer: Explainer, count: int = 30, share: float = 0.25, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        require(count >= 2 and 0 < share <= 1, f"infidelity: count={count}, share={share}: >= 2 and in (0, 1].")
        self.explainer, self.count, self.share, self.seed = explainer, count, share, seed

    def update(self, model: nn.Module, x: Tensor, target: Tensor) -> None:
        """Takes images [B, C, H, W] and targets [B]."""
        maps = self.explainer(model, x, target)
        products, changes = [], []
        before = _centred(logits(model, x), target)
        for part in squares(x, self.count, self.share, self.seed):
            products.append((maps.double() * part.double()).flatten(1).sum(1))
            changes.append(before - _centred(logits(model, x - part), target))
        found = torch.stack(products, 1), torch.stack(changes, 1)
        self.add(infidelity(*found), finite(maps, *found))


def _centred(outputs: Tensor, target: Tensor) -> Tensor:
    outputs = outputs.double()
    return outputs.gather(1, target[:, None])[:, 0] - outputs.mean(1)
