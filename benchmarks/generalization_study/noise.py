r"""The gradient noise scale: how large the noise of a stochastic gradient is beside the gradient itself.

McCandlish et al. 2018 (arXiv 1812.06162), equation 2.9: :math:`B_{simple} = tr(\Sigma) / |G|^2`, G the gradient of the
expected loss and Sigma the covariance of the gradient of one example. From gradients of two batch sizes both parts are
estimated without bias (appendix A.1): with :math:`E|G_B|^2 = |G|^2 + tr(\Sigma) / B`,

.. math::
    |G|^2 = \frac{B_{big} |G_{big}|^2 - B_{small} |G_{small}|^2}{B_{big} - B_{small}}, \qquad
    tr(\Sigma) = \frac{|G_{small}|^2 - |G_{big}|^2}{1 / B_{small} - 1 / B_{big}}.

The big batch here is all examples, the small ones are its parts, and :math:`|G_{small}|^2` is the mean over these. The
quotient of two unbiased estimates is not unbiased, and :math:`|G|^2` may come out below zero: both parts are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import require
from softgate.sites.inference import reading_out
from softgate.surrogate.rule import Surrogate


@dataclass(frozen=True)
class Noise:
    """Unbiased estimates from the gradients of some batches.

    Attributes:
        trace: tr(Sigma), the variance of one example's gradient, summed over the weights.
        square: The squared length of the expected gradient; an estimate, which may be negative.
    """

    trace: float
    square: float

    @property
    def scale(self) -> float:
        """B_simple in examples; NaN where the gradient is not told from zero."""
        return self.trace / self.square if self.square > 0 else math.nan


def noise(gradients: Tensor, size: int) -> Noise:
    """The noise of one example's gradient, from mean gradients of disjoint batches.

    Args:
        gradients: [batches, weights], each the mean over the examples of a batch.
        size: Examples in each batch.

    Raises:
        SoftgateError: If there is one batch only.
    """
    count = len(gradients)
    require(count > 1, f"noise: {count} batch(es); at least 2 are needed.")
    whole = float(gradients.mean(0).square().sum())
    part = float(gradients.square().sum(1).mean())
    big, small = count * size, size
    square = (big * whole - small * part) / (big - small)
    return Noise((part - whole) / (1 / small - 1 / big), square)


def batch_gradients(net: nn.Module, rule: Surrogate | None, x: Tensor, labels: Tensor, size: int) -> Tensor:
    """Mean gradients of the cross entropy in all weights, of consecutive batches, in eval mode.

    Args:
        net: The network; it is not changed.
        rule: The backward rule; None is the true gradient.
        x: [N, C, H, W].
        labels: [N].
        size: Examples in each batch, of which N is a multiple.

    Returns:
        [N / size, weights] in float64.
    """
    require(len(x) % size == 0, f"noise: {len(x)} examples are no whole number of batches of {size}.")
    rows = []
    with reading_out(net, rule, differentiable=True) as sites:
        weights = [p for p in sites.model.parameters() if p.requires_grad]
        for images, wanted in zip(torch.split(x, size), torch.split(labels, size), strict=True):
            loss = F.cross_entropy(sites.model(images.clone()), wanted)
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, materialize_grads=True)]))
    return torch.stack(rows).double()


def compared(ours: Tensor, true: Tensor) -> tuple[float, float]:
    """Cosine and ratio of norms of two mean gradients, from those of the same batches [batches, weights]."""
    a, b = ours.mean(0), true.mean(0)
    lengths = float(a.norm()), float(b.norm())
    known = min(lengths) > 0
    return (float(a @ b) / lengths[0] / lengths[1], lengths[0] / lengths[1]) if known else (math.nan, math.nan)
