"""Does the map depend on what is asked, and of which image? Cosines between maps that should differ."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate.metrics.base import ProbeMetric, finite, flat
from softgate.surrogate.inputs import checked


@checked
def target_specificity(maps: Tensor) -> Tensor:
    r"""Mean of :math:`|\cos(v_c, v_{c'})|` over pairs of targets, for each image.

    Args:
        maps: [B, K, C, H, W] maps of K >= 2 targets.

    Returns:
        [B] in [0, 1]; NaN where a map is zero or there is one target.
    """
    count = maps.shape[1]
    if count < 2 or len(maps) == 0:
        return torch.full((len(maps),), torch.nan, dtype=torch.float64, device=maps.device)
    grams = torch.stack([_cosines(one) for one in maps]).abs()
    return (grams.sum((1, 2)) - count) / (count * (count - 1))


@checked
def input_specificity(maps: Tensor, labels: Tensor) -> Tensor:
    r"""Mean of :math:`|\cos(v_c(x_i), v_c(x_j))|` over pairs of images of one class c, each read out for it.

    Args:
        maps: [N, C, H, W] maps of the images, each for its own class.
        labels: [N] the classes.

    Returns:
        A scalar in [0, 1]; NaN where no class has two images.
    """
    ones = torch.ones(1, len(maps), dtype=torch.float64, device=maps.device)
    return _over_pairs(flat(maps), labels, ones)[0]


def _cosines(maps: Tensor) -> Tensor:
    v = flat(maps)
    norms: Tensor = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    v = v / norms
    return v @ v.T


def _over_pairs(maps: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The mean over pairs of one class in which image i counts weights[:, i] times: [N, d], [N], [R, N] -> [R]."""
    alike = (labels[:, None] == labels[None, :]).double().fill_diagonal_(0)
    cosines = _cosines(maps).abs()
    alike = alike.where(cosines.isfinite(), 0)
    both = ((weights @ (alike * cosines.nan_to_num())) * weights).sum(1)
    return both / ((weights @ alike) * weights).sum(1)


class TargetSpecificity(ProbeMetric):
    r"""Mean of :math:`|\cos(v_c, v_{c'})|` over targets of one image; the absolute value, as signs would cancel.

    Source: the class sensitivity test, after Adebayo et al., arXiv 1810.03292, and Sixt et al., arXiv 1912.09818.

    >>> import torch
    >>> metric = TargetSpecificity()
    >>> metric.update(torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(1, 2, 1, 1, 2))
    >>> metric.compute()
    tensor(0.7071, dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    reason = "a map is zero, or there is only one target"

    def update(self, maps: Tensor) -> None:
        """Takes maps [B, K, C, H, W] of K >= 2 targets."""
        self.add(target_specificity(maps), finite(maps))


class InputSpecificity(ProbeMetric):
    r"""Mean of :math:`|\cos(v_c(x_i), v_c(x_j))|` over all pairs of images of one class.

    Keeps the maps of the probe set in float64: 256 at 3 x 64 x 64 take 25 MB.

    Source: as `TargetSpecificity`.

    >>> import torch
    >>> metric = InputSpecificity()
    >>> metric.update(torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2), torch.tensor([0, 0]))
    >>> metric.compute()
    tensor(0.7071, dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    degenerate = "no class has two images in the probe set with maps that are not zero"

    def update(self, maps: Tensor, labels: Tensor) -> None:
        """Takes maps [B, C, H, W], each for its image's own class, and the classes [B]."""
        self._width = 1 + maps[0].numel()
        v = flat(maps)
        empty = v.norm(dim=1, keepdim=True) == 0
        rows = torch.cat([labels.to(v)[:, None], v], 1).masked_fill(empty, torch.nan)
        self.add(rows, finite(maps))

    @property
    def width(self) -> int:
        """The class and the map; unknown to a process that has seen no image, which then takes part with a column."""
        return getattr(self, "_width", 1)

    def statistic(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The mean over pairs; rows hold the class and the map."""
        sound = ~rows[:, 0].isnan()
        return _over_pairs(rows[sound, 1:], rows[sound, 0], weights[:, sound])[:, None]
