"""The geometry of max poolings: their windows, as views and as copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def along(x: Tensor, axis: int, part: slice) -> Tensor:
    """A slice of a spatial axis, -2 or -1."""
    piece: Tensor = torch.ops.aten.slice(x, axis, part.start, part.stop, part.step or 1)
    return piece


@dataclass(frozen=True)
class Window:
    """The geometry of one max pooling."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    def pool(self, x: Tensor) -> Tensor:
        """The true max pooling."""
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def argmax(self, x: Tensor) -> Tensor:
        """Where each window's maximum stands in its plane, [..., oH, oW]; among ties, PyTorch's choice."""
        shape = self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        return F.max_pool2d(x, *shape, return_indices=True)[1]

    def pads(self, size: torch.Size, out: torch.Size) -> tuple[int, int, int, int]:
        """Padding (left, right, top, bottom) that holds every window; the far side covers ceil_mode."""
        far = []
        for axis in (-2, -1):
            reach = (out[axis] - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel[axis] - 1) + 1
            far.append(max(0, reach - size[axis] - self.padding[axis]))
        return self.padding[1], far[1], self.padding[0], far[0]

    def pieces(self, padded: Tensor, axis: int, count: int) -> Iterator[Tensor]:
        """For each offset in the window along one axis, -2 or -1, the view of `padded` that `count` windows touch."""
        step, dilation = self.stride[axis], self.dilation[axis]
        for start in range(0, self.kernel[axis] * dilation, dilation):
            yield along(padded, axis, slice(start, start + (count - 1) * step + 1, step))

    def slices(self, padded: Tensor, out: torch.Size) -> Iterator[Tensor]:
        """For each offset in the window, the [..., oH, oW] view of `padded` that it touches."""
        (sh, sw), (dh, dw) = self.stride, self.dilation
        for top in range(0, self.kernel[0] * dh, dh):
            for left in range(0, self.kernel[1] * dw, dw):
                rows = slice(top, top + (out[-2] - 1) * sh + 1, sh)
                yield padded[..., rows, left : left + (out[-1] - 1) * sw + 1 : sw]

    def elements(self, padded: Tensor, out: torch.Size) -> Tensor:
        """The elements of every window, [..., oH, oW, window elements], in a copy."""
        rows, columns = (self._positions(axis, out, padded.device) for axis in (-2, -1))
        return padded[..., rows[:, None, :, None], columns[None, :, None, :]].flatten(-2)

    def _positions(self, axis: int, out: torch.Size, device: torch.device) -> Tensor:
        first = torch.arange(out[axis], device=device) * self.stride[axis]
        return first[:, None] + torch.arange(self.kernel[axis], device=device) * self.dilation[axis]

    def partitions(self, x: Tensor) -> bool:
        """Whether each element lies in exactly one window, as where one window covers the plane."""
        axes = zip(x.shape[-2:], self.kernel, self.stride, strict=True)
        apart = all(size == kernel or (kernel == step and size % kernel == 0) for size, kernel, step in axes)
        return apart and self.padding == (0, 0) and self.dilation == (1, 1)

    def blocks(self, x: Tensor) -> Tensor:
        """[..., H, W] -> [..., oH, oW, window elements], where the windows are a partition."""
        *lead, rows, columns = x.shape
        height, width = self.kernel
        cut = x.reshape(*lead, rows // height, height, columns // width, width)
        return cut.transpose(-3, -2).flatten(-2)

    def unblocked(self, blocks: Tensor) -> Tensor:
        """The inverse of `blocks`."""
        *lead, rows, columns, _ = blocks.shape
        cut = blocks.reshape(*lead, rows, columns, *self.kernel).transpose(-3, -2)
        return cut.reshape(*lead, rows * self.kernel[0], columns * self.kernel[1])
