"""Is the logit what its pullback says? The affine reading's relative error, and whether it ranks images alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate.correlation import memberships, pearson, pearson_within
from softgate.metrics.base import ProbeMetric, finite
from softgate.surrogate.inputs import checked


@checked
def representation_error(logit: Tensor, represented: Tensor) -> Tensor:
    r""":math:`|f - f_\Lambda| / |f|` for each image.

    Args:
        logit: [B] target logits f.
        represented: [B] their affine readings, from `softgate.representation`.

    Returns:
        [B], NaN where f is zero.
    """
    logit, represented = logit.double(), represented.double()
    return ((logit - represented).abs() / logit.abs()).where(logit != 0, float("nan"))


class RepresentationError(ProbeMetric):
    r"""Mean of :math:`|f - \langle v, x \rangle - \sum_k \langle \partial f/\partial c_k, c_k \rangle| / |f|`.

    Rounding error under the true gates; under soft gates the distance of the logit to :math:`f_\Gamma`.

    Source: the paper, equation 7; the constants' share as in FullGrad, arXiv 1905.00780.

    >>> import torch
    >>> metric = RepresentationError()
    >>> metric.update(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 4.0]))
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    reason = "the logit is zero"

    def update(self, logit: Tensor, represented: Tensor) -> None:
        """Takes target logits [B] and their affine readings [B]."""
        self.add(representation_error(logit, represented), finite(logit, represented))


@checked
def kernel_agreement(logit: Tensor, represented: Tensor, labels: Tensor | None = None) -> Tensor:
    r"""The Pearson correlation over images of :math:`f_c` and :math:`f_{\Gamma,c}`.

    Args:
        logit: [N] target logits, centred: minus the mean logit.
        represented: [N] f_Gamma of the same, from `softgate.representation` under a soft rule.
        labels: [N]; given, both are first taken relative to their means within each class, so that it does not count
            that the classes differ.

    Returns:
        A scalar in [-1, 1]; NaN where one of the two does not vary, or there is no image.
    """
    logit, represented = logit.double(), represented.double()
    if len(logit) == 0:
        return logit.new_tensor(torch.nan)
    if labels is None:
        return pearson(logit, represented)
    one = torch.ones(1, len(logit), dtype=torch.float64, device=logit.device)
    return pearson_within(logit, represented, memberships(labels), one)[0]


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
        members = memberships(labels)
        if self.within_class:
            return pearson_within(a, b, members, weights)[:, None]
        found = pearson(a, b, weights)[:, None]
        # A dead network's logits are its biases: they differ between classes, and agree.
        repeated = bool((members.sum(0) > 1).any())
        dead = repeated and bool(pearson_within(a, b, members, torch.ones_like(weights[:1])).isnan())
        return torch.full_like(found, torch.nan) if dead else found
