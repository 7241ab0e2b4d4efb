"""Does the map say what the model does? Changed pixels, pixels blurred in its order, and its product with the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require
from softgate.explainers.base import Explainer
from softgate.explainers.noise import generators
from softgate.metrics.base import ProbeMetric, cosine, finite, logits
from softgate.metrics.blur import blur
from softgate.surrogate.inputs import checked


@checked
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


@checked
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


@checked
def pullback_accuracy(maps: Tensor, x: Tensor, outputs: Tensor) -> Tensor:
    r"""1 where :math:`argmax_c \langle x, v_c \rangle` is the model's prediction, else 0, for each image.

    Args:
        maps: [B, classes, C, H, W] maps of all classes.
        x: [B, C, H, W] their images.
        outputs: [B, classes] the model's logits.

    Returns:
        [B]; NaN where the products are all the same, as those of zero maps are.
    """
    products = (maps.detach().double() * x.detach().double()[:, None]).flatten(2).sum(2)
    agrees = (products.argmax(1) == outputs.argmax(1)).double()
    return agrees.where(products.amax(1) > products.amin(1), torch.nan)


class PullbackAccuracy(ProbeMetric):
    r"""Share of images for which :math:`argmax_c \langle x, v_c \rangle` is the predicted class; chance is 1/classes.

    Source: the paper, equation 7 without its constants.

    >>> import torch
    >>> metric = PullbackAccuracy()
    >>> maps = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 1, 2)
    >>> metric.update(maps, torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[0.3, 0.1]]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    reason = "the products of image and maps are the same for all classes"

    def update(self, maps: Tensor, x: Tensor, outputs: Tensor) -> None:
        """Takes the maps of all classes [B, classes, C, H, W], the images and the logits [B, classes]."""
        self.add(pullback_accuracy(maps, x, outputs), finite(maps, x, outputs))
