"""Max pooling with its choices given: which element of each window is passed on, or how much of each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import require
from softgate.surrogate.windows import Window


def choose(window: Window, x: Tensor) -> Tensor:
    """Which element of each window is the maximum, among ties PyTorch's choice.

    Args:
        window: The geometry.
        x: [..., H, W].

    Returns:
        [..., oH, oW] uint8: the row in the window times the window's width, plus the column.
    """
    count = window.kernel[0] * window.kernel[1]
    require(count <= 256, f"paths: a pooling window of {count} elements; up to 256 can be recorded.")
    at = window.argmax(x)
    row, column = at // x.shape[-1], at % x.shape[-1]
    top, left = _corners(window, at)
    place = (row - top) // window.dilation[0] * window.kernel[1] + (column - left) // window.dilation[1]
    return place.to(torch.uint8)


def shares(window: Window, x: Tensor) -> Tensor:
    """An equal share of each window's sum for every element that is its maximum, zero for the others.

    Args:
        window: The geometry.
        x: [..., H, W].

    Returns:
        [..., window elements, oH, oW], floating point.
    """
    top = window.pool(x)
    padded = F.pad(x, window.pads(x.shape, top.shape), value=-torch.inf)
    largest = torch.stack([piece == top for piece in window.slices(padded, top.shape)], -3).to(x.dtype)
    return largest / largest.sum(-3, keepdim=True)


def take(window: Window, x: Tensor, choices: Tensor) -> Tensor:
    """The chosen element of each window, bit for bit; linear in `x` [..., H, W]."""
    places = choices.long()
    top, left = _corners(window, choices)
    row = top + places // window.kernel[1] * window.dilation[0]
    column = left + places % window.kernel[1] * window.dilation[1]
    flat = (row * x.shape[-1] + column).flatten(-2).expand(*x.shape[:-2], -1)
    return x.flatten(-2).gather(-1, flat).view(*x.shape[:-2], *choices.shape[-2:])


def weigh(window: Window, x: Tensor, weights: Tensor) -> Tensor:
    """The sum over each window of weight times element, padding being zero; linear in `x`.

    Args:
        window: The geometry.
        x: [..., H, W].
        weights: [..., window elements, oH, oW].
    """
    size = weights.shape[-2:]
    padded = F.pad(x, window.pads(x.shape, size))
    pieces = window.slices(padded, size)
    out = next(pieces) * weights[..., 0, :, :]
    for place, piece in enumerate(pieces, start=1):
        out = out + piece * weights[..., place, :, :]
    return out


def _corners(window: Window, like: Tensor) -> tuple[Tensor, Tensor]:
    """Row [oH, 1] and column [1, oW] in the plane where each window begins."""
    height, width = like.shape[-2:]
    top = torch.arange(height, device=like.device) * window.stride[0] - window.padding[0]
    left = torch.arange(width, device=like.device) * window.stride[1] - window.padding[1]
    return top[:, None], left[None, :]
