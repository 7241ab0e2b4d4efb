"""Is the map smooth, and at which scales does it vary? Total variation, high frequencies, spectral slope."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate.metrics.base import ProbeMetric, finite, flat
from softgate.surrogate.inputs import checked


@checked
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


CUTOFF = 0.25
"""Cycles per pixel above which a frequency counts as high; the diagonal ends at 0.71."""


def _power(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Spectral power [B, H, W], summed over channels, and the frequency of each bin [H, W] in cycles per pixel."""
    maps = maps.detach().double()
    power = torch.fft.fft2(maps).abs().square().sum(1)
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64, device=maps.device) for n in maps.shape[-2:])
    return power, (rows[:, None].square() + columns[None, :].square()).sqrt()


@checked
def high_frequency(maps: Tensor, cutoff: float = CUTOFF) -> Tensor:
    """Share of each map's spectral power at more than `cutoff` cycles per pixel.

    Args:
        maps: [B, C, H, W].
        cutoff: In cycles per pixel.

    Returns:
        [B] in [0, 1]; NaN where the map is zero. White noise has about 0.80 at the default.
    """
    power, frequency = _power(maps)
    return (power * (frequency > cutoff)).sum((1, 2)) / power.sum((1, 2))


@checked
def spectral_slope(maps: Tensor) -> Tensor:
    """Slope of log power over log frequency: least squares over rings one cycle per image wide, without the mean.

    Args:
        maps: [B, C, H, W].

    Returns:
        [B]; photographs have about -2. NaN where a ring has no power or there are fewer than two rings.
    """
    power, frequency = _power(maps)
    side = min(maps.shape[-2:])
    ring = (frequency * side).round().long().flatten()
    rings = side // 2
    inside = (ring >= 1) & (ring <= rings)
    total = torch.zeros(len(power), rings + 1, dtype=power.dtype, device=power.device)
    total.index_add_(1, ring[inside], power.flatten(1)[:, inside])
    mean = total[:, 1:] / ring[inside].bincount(minlength=rings + 1)[1:]
    x = torch.arange(1, rings + 1, dtype=power.dtype, device=power.device).log()
    x = x - x.mean()
    # Rounding leaves 1e-30 of the power where there is none.
    sound = (mean > 1e-24 * power.sum((1, 2))[:, None]).all(1) & (rings >= 2)
    return ((mean.log() * x).sum(1) / x.square().sum()).where(sound, torch.nan)


class HighFrequency(ProbeMetric):
    """Mean share of spectral power above a quarter cycle per pixel.

    Source: spectral power of gradients, as in work on spectral bias (arXiv 1806.08734). Gamed by any blur.

    >>> import torch
    >>> metric = HighFrequency()
    >>> metric.update(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None])
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def update(self, maps: Tensor) -> None:
        """Takes maps [B, C, H, W]."""
        self.add(high_frequency(maps), finite(maps))


class SpectralSlope(ProbeMetric):
    """Mean of the slope of a map's spectrum minus the slope of its image's: 0 is as smooth as the data.

    Source: the 1/f^2 power spectrum of natural images, Field 1987.

    >>> import torch
    >>> x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> metric = SpectralSlope()
    >>> metric.update(3 * x, x)
    >>> print(f"{metric.compute().abs():.6f}")
    0.000000
    """

    higher_is_better = None  # zero is best
    reason = "the map or the image has no power at some frequency; constant images have none"

    def update(self, maps: Tensor, x: Tensor) -> None:
        """Takes maps [B, C, H, W] and their images [B, C, H, W]."""
        self.add(spectral_slope(maps) - spectral_slope(x), finite(maps, x))
