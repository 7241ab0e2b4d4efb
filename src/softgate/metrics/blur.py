"""The Gaussian blur that several metrics and controls need."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def blur(x: Tensor, sigma: float) -> Tensor:
    """Images [B, C, H, W] convolved with a Gaussian of standard deviation `sigma` pixels; edges are continued."""
    if sigma <= 0:
        return x
    for axis in (2, 3):
        reach = max(1, min(int(4 * sigma + 0.5), 4 * x.shape[axis]))
        steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = torch.exp(-steps.square() / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).to(x)
        size = [1, 1]
        size[axis - 2] = len(kernel)
        pads = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        weight = kernel.view(1, 1, *size).expand(x.shape[1], 1, *size)
        x = F.conv2d(F.pad(x, pads, mode="replicate"), weight, groups=x.shape[1])
    return x
