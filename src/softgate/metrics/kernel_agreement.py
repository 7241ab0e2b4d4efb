"""Does the network with soft gates rank images as the true network does? Pearson of f and f_Gamma."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.metrics.base import ProbeMetric, finite

SAME = 1e-6
"""Spread, relative to the largest absolute value, up to which numbers count as all the same."""


def pearson(a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
    """The Pearson correlation of a [N] and b [N], each pair counted `weights` times.

    Args:
        a: [N].
        b: [N].
        weights: [R, N]; None counts each pair once.

    Returns:
        [R], or a scalar without weights; NaN where a or b is constant.
    """
    each = torch.ones(1, len(a), dtype=a.dtype, device=a.device) if weights is None else weights
    total = each.sum(1, keepdim=True)
    da, db = (v - (each @ v)[:, None] / total for v in (a, b))
    va, vb = ((each * d.square()).sum(1) for d in (da, db))
    found = (each * da * db).sum(1) / (va * vb).sqrt()
    for v, spread in ((a, va), (b, vb)):
        found = found.where((spread / total[:, 0]).sqrt() > SAME * v.abs().max(), torch.nan)
    return found[0] if weights is None else found


def kernel_agreement(logit: Tensor, represented: Tensor, labels: Tensor | None = None) -> Tensor:
    r"""The Pearson correlation over images of :math:`f_c` and :math:`f_{\Gamma,c}`.

    Args:
        logit: [N] target logits, centred: minus the mean logit.
        represented: [N] f_Gamma of the same, from `softgate.representation` under a soft rule.
        labels: [N]; given, both are first taken relative to their means within each class, so that it does not count
            that the classes differ.

    Returns:
        A scalar in [-1, 1]; NaN where one of the two does not vary.
    """
    logit, represented = logit.double(), represented.double()
    if labels is None:
        return pearson(logit, represented)
    members = F.one_hot(labels).double()
    one = torch.ones(1, len(logit), dtype=torch.float64, device=logit.device)
    return _within(logit, represented, members, one)[0]


def _within(a: Tensor, b: Tensor, members: Tensor, weights: Tensor) -> Tensor:
    """Pearson of deviations from class means: a, b [N], members [N, classes], weights [R, N] -> [R]."""
    sizes = (weights @ members).clamp_min(1)
    da, db = (v - ((weights @ (members * v[:, None])) / sizes) @ members.T for v in (a, b))
    va, vb = ((weights * d.square()).sum(1) for d in (da, db))
    found = (weights * da * db).sum(1) / (va * vb).sqrt()
    for v, spread in ((a, va), (b, vb)):
        found = found.where((spread / weights.sum(1)).sqrt() > SAME * v.abs().max(), torch.nan)
    return found


class KernelAgreement(ProbeMetric):
    r"""Pearson over the probe set of :math:`f_c` and :math:`f_{\Gamma,c}`, c the target of each image, centred logits.

    The paper's Hypothesis 1 at one time: that the network acts as the kernel machine of its soft paths. Pooled values
    are inflated by the differences between classes; `within_class=True` leaves these out.

    Source: the paper, Hypothesis 1 and equation 7.

    Args:
        within_class: Correlate the deviations from the class means.
        kwargs: Of `torchmetrics.Metric`.

    >>> import torch
    >>> metric = KernelAgreement()
    >>> metric.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0, 1, 2]))
    >>> metric.compute()
    tensor(0.8660, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    degenerate = "logits or affine readings do not vary over the probe set, or within classes none has two images"

    def __init__(self, within_class: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.within_class = within_class

    @property
    def width(self) -> int:
        """Logit, affine reading, class."""
        return 3

    def update(self, logit: Tensor, represented: Tensor, labels: Tensor) -> None:
        """Takes target logits [B], their affine readings [B] and the classes [B]."""
        rows = torch.stack([logit.double(), represented.double(), labels.double()], 1)
        self.add(rows, finite(logit, represented))

    def statistic(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Pearson of the first two columns; NaN also where classes have several images and none varies within."""
        a, b, labels = rows.unbind(1)
        _, numbered = torch.unique(labels, return_inverse=True)
        members = F.one_hot(numbered).double()
        if self.within_class:
            return _within(a, b, members, weights)[:, None]
        found = pearson(a, b, weights)[:, None]
        # A dead network's logits are its biases: they differ between classes, and agree.
        repeated = bool((members.sum(0) > 1).any())
        dead = repeated and bool(_within(a, b, members, torch.ones_like(weights[:1])).isnan())
        return torch.full_like(found, torch.nan) if dead else found
