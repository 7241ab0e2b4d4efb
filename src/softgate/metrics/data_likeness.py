"""Does the map look like the data? Its projection on the image, and on the way to the class's mean image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate.errors import require
from softgate.metrics.base import ProbeMetric, cosine, finite, flat
from softgate.surrogate.inputs import checked


@checked
def data_alignment(maps: Tensor, x: Tensor) -> Tensor:
    r""":math:`\langle x, v \rangle / \|v\|` for each image, in units of the input's L2 norm.

    Args:
        maps: [B, C, H, W].
        x: [B, C, H, W] their images, as the model takes them.

    Returns:
        [B]; NaN where the map is zero. At most the norm of the image.
    """
    v = flat(maps)
    found: Tensor = (flat(x) * v).sum(1) / torch.linalg.vector_norm(v, dim=1)
    return found


@checked
def mean_alignment(maps: Tensor, x: Tensor, means: Tensor) -> Tensor:
    r""":math:`\cos(v_c, \mu_c - x)` for each image.

    Args:
        maps: [B, C, H, W] maps of the targets.
        x: [B, C, H, W] their images.
        means: [B, C, H, W] the mean image of each target class.

    Returns:
        [B] in [-1, 1]; NaN where the map is zero or the image is the mean image.
    """
    return cosine(flat(maps), flat(means) - flat(x))


class DataAlignment(ProbeMetric):
    r"""Mean of :math:`\langle x, v \rangle / \|v\|`; gamed by a map that copies the image.

    Source: Etmann et al., arXiv 1905.04172.

    >>> import torch
    >>> metric = DataAlignment()
    >>> metric.update(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[3.0, 4.0]]]]))
    >>> metric.compute()
    tensor(5., dtype=torch.float64)
    """

    higher_is_better = True

    def update(self, maps: Tensor, x: Tensor) -> None:
        """Takes maps [B, C, H, W] and their images [B, C, H, W]."""
        self.add(data_alignment(maps, x), finite(maps, x))


class MeanAlignment(ProbeMetric):
    r"""Mean of :math:`\cos(v_c, \mu_c - x)`: whether the map points to the mean image of its class.

    Needs no weights and no judge, and a map that copies the image does not win it.

    Source: perceptual alignment with class means, after Ganz, Kawar and Elad, arXiv 2207.11378.

    Args:
        means: [classes, C, H, W] mean images of the classes, as the model takes them.
        kwargs: Of `torchmetrics.Metric`.

    >>> import torch
    >>> metric = MeanAlignment(torch.ones(2, 1, 2, 2))
    >>> metric.update(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2), torch.tensor([1]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    reason = "the map is zero, the image is its class's mean, or the class has no mean image"

    def __init__(self, means: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require(means.dim() == 4, f"mean_alignment: means of shape {tuple(means.shape)}: [classes, C, H, W] is needed.")
        self.means = means

    def update(self, maps: Tensor, x: Tensor, target: Tensor) -> None:
        """Takes maps [B, C, H, W], their images and the targets [B]."""
        means = self.means.to(x.device)[target.to(x.device)]
        self.add(mean_alignment(maps, x, means), finite(maps, x))
