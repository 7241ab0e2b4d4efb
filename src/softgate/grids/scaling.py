"""From pullbacks, which have a sign and heavy tails, to colours: three scales, zero at the same colour in each."""

from __future__ import annotations

import math

import torch
from matplotlib import colormaps
from torch import Tensor

from softgate.errors import unknown

QUANTILE = 0.995
"""Share of a pullback's values that its colours cover without saturating."""

SCALES = ("cell", "shared", "seismic")
"""cell: each pullback by itself; shared: one scale for all; seismic: the sum over channels as a signed heat map."""


def peak(v: Tensor) -> float:
    """The 99.5th percentile of absolute values over all of `v`; 0 where nothing is finite or all is zero.

    Args:
        v: Any shape.
    """
    size = v.detach().abs().flatten().float()
    size = size[size.isfinite()]
    if not len(size):
        return 0.0
    rank = min(len(size), math.ceil(QUANTILE * len(size)))
    return float(size.kthvalue(rank).values) or float(size.max())


def scale_each(v: Tensor) -> Tensor:
    """Maps each pullback to [0, 1], zero at mid-grey, by its own 99.5th percentile of absolute values.

    Pullbacks have heavy tails: scaled by their maximum they are nearly all grey. Half a percent saturates.

    Args:
        v: [..., C, H, W].

    Returns:
        The same shape; an all-zero or non-finite pullback becomes mid-grey.
    """
    return _to_colours(v, _peaks(v))


def scale_shared(v: Tensor, top: float | None = None) -> Tensor:
    """Maps pullbacks to [0, 1], zero at mid-grey, all by one scale, so that they can be compared.

    Args:
        v: [..., C, H, W].
        top: The absolute value that becomes black or white; None is the 99.5th percentile over all of `v`.

    Returns:
        The same shape.
    """
    return _to_colours(v, torch.tensor(peak(v) if top is None else top, dtype=v.dtype, device=v.device))


def seismic(v: Tensor) -> Tensor:
    """The sum over channels as colours: blue is negative, white zero, red positive; each pullback by itself.

    Args:
        v: [..., C, H, W].

    Returns:
        [..., 3, H, W] in [0, 1].
    """
    total = v.sum(-3, keepdim=True)
    level = _to_colours(total, _peaks(total)).squeeze(-3).float().cpu().numpy()
    return torch.from_numpy(colormaps["seismic"](level)[..., :3]).movedim(-1, -3).to(v.device, torch.float32)


def colours(v: Tensor, scale: str, top: float | None = None) -> Tensor:
    """Colours [..., 3, H, W] in [0, 1], or greys [..., 1, H, W], for pullbacks [..., C, H, W] on one of `SCALES`.

    Raises:
        SoftgateError: For an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if scale == "shared":
        return scale_shared(v, top)
    return scale_each(v) if scale == "cell" else seismic(v)


def _peaks(v: Tensor) -> Tensor:
    size = v.abs().flatten(-3).float()
    tops = size.quantile(QUANTILE, dim=-1) if size.shape[-1] <= 2**24 else size.amax(-1)  # quantile's own limit
    return torch.where(tops > 0, tops, size.amax(-1))[..., None, None, None].to(v.dtype)


def _to_colours(v: Tensor, tops: Tensor) -> Tensor:
    scaled = torch.where(tops > 0, v / tops, torch.zeros_like(v))
    return (scaled / 2 + 0.5).nan_to_num(0.5).clamp(0, 1)
