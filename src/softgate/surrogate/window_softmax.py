r"""Softmax over the windows of a max pooling, one axis after the other.

A window of k * k elements is a column of k rows. With :math:`y_j` the maximum of row j and y that of the window,

.. math:: w_i = e^{(x_i - y_j) / T} \, e^{(y_j - y) / T} / Z, \quad
          Z = \sum_j e^{(y_j - y) / T} \sum_{i \in j} e^{(x_i - y_j) / T}.

No exponent is above zero, whatever the values. Windows that lie above each other share their rows' sums: 2 k strided
slices are walked, not k * k, and a compiler unrolls no more than these.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.surrogate.numerics import in_transforms
from softgate.surrogate.windows import Window

DEEPEST = -1e4
"""Exponents are not taken below this, where exp is 0 in every dtype: 0 * inf must not arise."""


class WindowSoftmax:
    """The weights of a pooling rule over all windows of `x`, as a linear map and its transpose.

    Args:
        window: The geometry.
        x: [..., H, W], no infinity in it.
        size: [..., oH, oW], the shape of what is pooled.
        temperature: T.
        full: The weights w_i (1 + d_i - S) in the place of w_i, with d_i = (x_i - y) / T and S = sum of w_i d_i.
    """

    def __init__(self, window: Window, x: Tensor, size: torch.Size, temperature: float, full: bool) -> None:
        self.window, self.temperature, self.full = window, temperature, full
        self.height, self.width = x.shape[-2:]
        self.counts = {-2: size[-2], -1: size[-1]}
        self.pads = window.pads(x.shape, size)
        self.least = -torch.finfo(x.dtype).max / 4  # where a row has no element
        self.padded = F.pad(x, self.pads, value=float("-inf")) if any(self.pads) else x
        self.rows = self._largest(self.padded, -1)
        self.top = self._largest(self.rows, -2)
        sums, moments = torch.zeros_like(self.rows), torch.zeros_like(self.rows) if full else None
        for piece in self._pieces(self.padded, -1):
            depth, excitation = self._excite(piece, self.rows)
            sums += excitation
            if moments is not None:
                moments += excitation.mul_(depth)
        total, mean = torch.zeros_like(self.top), torch.zeros_like(self.top)
        for piece, part, moment in self._pieces_of(-2, self.rows, sums, sums if moments is None else moments):
            depth, excitation = self._excite(piece, self.top)
            total += excitation * part
            if full:
                mean += excitation.mul_(moment + depth * part)
        self.total = total.clamp_min(1)  # it is, but for a window that touches no element
        self.mean = mean / self.total

    def spread(self, grad: Tensor) -> Tensor:
        """Sum over windows of weight_i * grad: [..., oH, oW] -> [..., H, W]."""
        share = grad / self.total
        flow, extra, out = (_zeros(like, share) for like in (self.rows, self.rows, self.padded))
        for piece, into, more in self._pieces_of(-2, self.rows, flow, extra):
            depth, excitation = self._excite(piece, self.top)
            excitation = excitation * share
            into += excitation
            if self.full:
                more += excitation * (depth - self.mean)
        for piece, into in self._pieces_of(-1, self.padded, out):
            depth, excitation = self._excite(piece, self.rows)
            into += excitation * ((1 + depth) * flow + extra if self.full else flow)
        left, _, above, _ = self.pads
        return out[..., above : above + self.height, left : left + self.width]

    def gather(self, values: Tensor) -> Tensor:
        """Sum over each window of weight_i * values_i: [..., H, W] -> [..., oH, oW]."""
        source = F.pad(values.to(self.padded.dtype), self.pads)
        inner, extra, out = (_zeros(like, source) for like in (self.rows, self.rows, self.top))
        for piece, part in self._pieces_of(-1, self.padded, source):
            depth, excitation = self._excite(piece, self.rows)
            excitation = excitation * part
            inner += excitation
            if self.full:
                extra += excitation * depth
        for piece, part, more in self._pieces_of(-2, self.rows, inner, extra):
            depth, excitation = self._excite(piece, self.top)
            out += excitation * ((depth - self.mean + 1) * part + more if self.full else part)
        return out / self.total

    def _excite(self, x: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """The depth (x - top) / T below a maximum, and its exponential."""
        depth = (x - top).div_(self.temperature)
        if self.full:
            depth = depth.clamp(min=DEEPEST)
            return depth, depth.exp()
        return (depth, depth.exp_())

    def _largest(self, x: Tensor, axis: int) -> Tensor:
        """The maximum over the pieces of the windows along an axis."""
        largest, *others = self._pieces(x, axis)
        for piece in others:
            largest = torch.maximum(largest, piece)
        return largest.clamp_min(self.least)

    def _pieces(self, x: Tensor, axis: int) -> Iterator[Tensor]:
        return self.window.pieces(x, axis, self.counts[axis])

    def _pieces_of(self, axis: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The pieces of several tensors side by side."""
        return zip(*(self._pieces(x, axis) for x in tensors), strict=True)


def _zeros(like: Tensor, given: Tensor) -> Tensor:
    """Zeros to sum up in; within a transform batched as soon as one of the two is."""
    zeros = torch.zeros_like(like)
    return zeros + given.new_zeros(()) if in_transforms() else zeros
