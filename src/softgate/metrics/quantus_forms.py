r"""Metrics in the forms of the Quantus library, beside which published columns can be laid.

`MaxSensitivity` has Quantus' form already: with `radius=0.2` it is Quantus' at its default bound. Here are Focus, of
mosaics of two pairs, and the similarity of the map to that of a random other logit, which Quantus takes as the
structural similarity of the *flattened* maps.

Sources: Quantus (arXiv 2202.06861); Focus, Arias-Duart et al. (arXiv 2109.15035); random logit, Sixt et al. (arXiv
1912.09818).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import require
from softgate.explainers.base import Explainer
from softgate.explainers.noise import generators
from softgate.metrics.base import ProbeMetric, finite, flat, logits
from softgate.surrogate.inputs import checked

WINDOW = 7
"""Neighbours over which structural similarity takes its moments; scikit-image's default."""


@checked
def paired_mosaics(images: Tensor, labels: Tensor, count: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Mosaics of two images of one class and two of other classes, in random cells.

    Args:
        images: [N, C, H, W].
        labels: [N] their classes.
        count: Number of mosaics.
        seed: Of the draws.

    Returns:
        Mosaics [count, C, 2 H, 2 W], the class of each pair [count], and which cells hold it [count, 4], row by row.
        None at all ([0, ...]) where no class has two images, or all images are of one class.
    """
    require(count >= 1, f"focus: count={count}: at least 1 is needed.")
    counts = {int(c): int((labels == c).sum()) for c in torch.unique(labels)}
    pairs = [c for c, size in counts.items() if size >= 2 and len(labels) - size >= 2]
    height, width = images.shape[-2:]
    if not pairs:
        none = images.new_empty(0, images.shape[1], 2 * height, 2 * width)
        return none, labels.new_empty(0), torch.empty(0, 4, dtype=torch.bool, device=images.device)
    generator = torch.Generator().manual_seed(seed)
    made, named, where = [], [], []
    for _ in range(count):
        chosen = pairs[int(torch.randint(len(pairs), (1,), generator=generator))]
        own, other = ((labels == chosen).nonzero().flatten(), (labels != chosen).nonzero().flatten())
        picks = [m[torch.randperm(len(m), generator=generator)[:2].to(m.device)] for m in (own, other)]
        order = torch.randperm(4, generator=generator)
        cells = [images[i] for i in torch.cat(picks)[order.to(labels.device)].tolist()]
        made.append(torch.cat([torch.cat(cells[:2], 2), torch.cat(cells[2:], 2)], 1))
        named.append(chosen)
        where.append(order < 2)
    return torch.stack(made), torch.tensor(named, device=labels.device), torch.stack(where).to(images.device)


@checked
def focus(maps: Tensor, cells: Tensor) -> Tensor:
    r"""Share of :math:`v^+` in the cells of the target's class.

    Args:
        maps: [B, C, H, W] of mosaics of two by two.
        cells: [B, 4] bool, which cells hold the class, row by row.

    Returns:
        [B] in [0, 1], 1/2 by chance; NaN where nothing is positive. The border lies at H // 2 and W // 2.
    """
    fits = cells.dtype == torch.bool and cells.shape == (len(maps), 4)
    require(fits, f"focus: cells {tuple(cells.shape)} of {cells.dtype}: [{len(maps)}, 4] of bool is needed.")
    positive = maps.detach().double().clamp_min(0).sum(1)
    height, width = (size // 2 for size in positive.shape[-2:])
    rows = positive[:, :height], positive[:, height:]
    sums = torch.stack([part.sum((1, 2)) for row in rows for part in (row[..., :width], row[..., width:])], 1)
    return (sums * cells).sum(1) / sums.sum(1)


class Focus(ProbeMetric):
    r"""Mean share of :math:`v^+` that lies in the two cells of the target's class; chance is 1/2.

    Source: Arias-Duart et al., arXiv 2109.15035, in Quantus' form: of the map, not of its product with the image.

    Args:
        explainer: Gives the maps.
        kwargs: Of `torchmetrics.Metric`.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
    >>> metric = Focus(lambda model, x, target: x)
    >>> metric.update(torch.nn.Flatten(), x, torch.tensor([0]), torch.tensor([[True, False, True, False]]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    absent = "there is no mosaic: no class has two images, or there are no two of others"
    reason = "nothing in the map is positive"

    def __init__(self, explainer: Explainer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.explainer = explainer

    def update(self, model: nn.Module, x: Tensor, target: Tensor, cells: Tensor) -> None:
        """Takes mosaics [B, C, H, W], classes [B] and cells [B, 4], as `paired_mosaics` makes them."""
        maps = self.explainer(model, x, target)
        self.add(focus(maps, cells), finite(maps, logits(model, x)))


@checked
def flat_similarity(maps: Tensor, others: Tensor) -> Tensor:
    r"""Structural similarity of flattened maps, each divided by its greatest absolute value.

    The mean over windows of seven neighbours of
    :math:`(2\mu_a\mu_b + c_1)(2\sigma_{ab} + c_2) / ((\mu_a^2 + \mu_b^2 + c_1)(\sigma_a^2 + \sigma_b^2 + c_2))`,
    :math:`c_i = (k_i R)^2, k = .01, .03`, R the range of both maps, moments with seven minus one degrees of freedom.

    Args:
        maps: [B, C, H, W], at least seven numbers each.
        others: Of that shape.

    Returns:
        [B] in [-1, 1]; NaN where a map is zero.
    """
    a, b = (flat(each) for each in (maps, others))
    require(a.shape[1] >= WINDOW, f"random_logit: maps of {a.shape[1]} numbers: at least {WINDOW} are needed.")
    a, b = (each / each.abs().amax(1, keepdim=True) for each in (a, b))
    both = torch.cat([a, b], 1)
    spread = both.amax(1, keepdim=True) - both.amin(1, keepdim=True)
    first, second = ((k * spread).square() for k in (0.01, 0.03))

    def mean(each: Tensor) -> Tensor:
        return F.avg_pool1d(each[:, None], WINDOW, 1)[:, 0]

    unbiased = WINDOW / (WINDOW - 1)
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = (unbiased * (mean(each * each) - m * m) for each, m in ((a, mean_a), (b, mean_b)))
    shared = unbiased * (mean(a * b) - mean_a * mean_b)
    above = (2 * mean_a * mean_b + first) * (2 * shared + second)
    return (above / ((mean_a.square() + mean_b.square() + first) * (var_a + var_b + second))).mean(1)


class RandomLogit(ProbeMetric):
    """Mean similarity of a map to that of a random other class: high where the map does not depend on the class.

    Source: Sixt, Granz and Landgraf, arXiv 1912.09818, in Quantus' form, `flat_similarity`.

    Args:
        explainer: Gives the maps.
        seed: Of the draws of other classes.
        kwargs: Of `torchmetrics.Metric`.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    >>> metric = RandomLogit(lambda model, x, target: x)
    >>> metric.update(net, torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(self, explainer: Explainer, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.explainer, self.seed = explainer, seed

    def update(self, model: nn.Module, x: Tensor, target: Tensor) -> None:
        """Takes images [B, C, H, W] and targets [B]; other classes are drawn from an image's pixels and the seed."""
        outputs = logits(model, x)
        classes = outputs.shape[1]
        require(classes >= 2, f"random_logit: the model has {classes} class; at least 2 are needed.")
        drawn = [int(torch.randint(1, classes, (), generator=each)) for each in generators(x, self.seed)]
        shift = torch.tensor(drawn, device=target.device, dtype=target.dtype)
        maps, others = self.explainer(model, x, target), self.explainer(model, x, (target + shift) % classes)
        self.add(flat_similarity(maps, others), finite(maps, others, outputs))
