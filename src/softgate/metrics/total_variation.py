"""Is the map smooth? Its total variation, relative to its size."""

from __future__ import annotations

from torch import Tensor

from softgate.metrics.base import ProbeMetric, finite, flat


def total_variation(maps: Tensor) -> Tensor:
    r"""Sum of absolute differences of neighbouring pixels, divided by :math:`\|v\|_1`, for each image.

    Args:
        maps: [B, C, H, W].

    Returns:
        [B] in [0, 4]; NaN where the map is zero. A constant map has 0, independent Gaussian noise about 2.8.
    """
    maps = maps.detach().double()
    down = (maps[..., 1:, :] - maps[..., :-1, :]).abs().flatten(1).sum(1)
    right = (maps[..., :, 1:] - maps[..., :, :-1]).abs().flatten(1).sum(1)
    return (down + right) / flat(maps).abs().sum(1)


class TotalVariation(ProbeMetric):
    r"""Mean of :math:`TV(v) / \|v\|_1`.

    >>> import torch
    >>> metric = TotalVariation()
    >>> metric.update(torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))
    >>> metric.compute()
    tensor(2., dtype=torch.float64)

    Source: total variation, Rudin, Osher and Fatemi 1992; made scale-free.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 4.0

    def update(self, maps: Tensor) -> None:
        """Takes maps [B, C, H, W]."""
        self.add(total_variation(maps), finite(maps))
