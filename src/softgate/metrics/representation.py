"""Is the logit what its pullback says? The relative error of the affine reading."""

from __future__ import annotations

from torch import Tensor

from softgate.metrics.base import ProbeMetric, finite


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
