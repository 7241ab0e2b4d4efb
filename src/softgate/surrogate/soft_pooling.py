"""Soft pooling: the linear map that a pooling rule applies to the gradient of one max pooling, and its transpose.

The arithmetic behind `softgate.surrogate.functional.max_pool2d`. Differentiated twice, the weights are constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.surrogate.numerics import in_transforms, wide
from softgate.surrogate.window_softmax import DEEPEST, WindowSoftmax
from softgate.surrogate.windows import Window, along

DEPTH = {torch.float32: 44.0, torch.float64: 300.0}
"""How far below zero exponents may lie: upstream gradients up to exp(DEPTH) over a sum of such neither overflow in
float32 nor lose digits, however small they are."""


def _channels_last(x: Tensor) -> bool:
    if x.dim() != 4 or in_transforms():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _pooling_order(x: Tensor) -> Tensor:
    """`x` in channels-last order on the CPU, where PyTorch's pooling is many times faster in it."""
    fits = x.dim() == 4 and x.device.type == "cpu" and not torch.compiler.is_compiling() and not in_transforms()
    return x.contiguous(memory_format=torch.channels_last) if fits else x


def _in_order_of(x: Tensor, out: Tensor) -> Tensor:
    """`out` in the memory order of `x`."""
    if in_transforms():
        return out
    return out.contiguous(memory_format=torch.channels_last if _channels_last(x) else torch.contiguous_format)


def _bound(x: Tensor) -> float:
    """A quarter of the number range: the difference of two such numbers is no infinity."""
    return torch.finfo(x.dtype).max / 4


def _bounded(x: Tensor) -> Tensor:
    """`x` in float32 at least, infinities and what is nearly one clamped, so that inf - inf cannot arise."""
    values = wide(x)
    return values.clamp(-_bound(values), _bound(values))


@dataclass(frozen=True)
class SoftPooling(Window):
    """One max pooling: its geometry, and the linear map its backward pass applies, both ways.

    The weights are w_i = exp(d_i) / Z, d_i = (x_i - y)/T <= 0 with y the window's maximum, or, for softmax_full,
    w_i (1 + d_i - S) with S = sum of w_i d_i, which is Listing 2's 1 + (x_i - s)/T. Windows that do not overlap are
    cut apart and are one softmax; others are walked axis by axis.
    """

    temperature: float
    full: bool
    mix: float
    match: bool = False
    split_ties: bool = False
    """Whether the true gradient of a plane's maximum is shared among equal elements, as torch.amax has it."""

    def spread(self, grad: Tensor, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Distributes `grad` [..., oH, oW] over the windows: sum over windows of weight_i * grad, [..., H, W].

        The weights are those of x / scale. They do not change where a window's maximum is.
        """
        values = x.detach() if scale is None else wide(x) / scale
        shared = None if self._covers(x) else self._shared_excitation(values)
        if shared is not None:
            out = self._spread_shared(grad, *shared)
        elif self.partitions(x):
            out = self.unblocked(grad[..., None] * self._softmax(self.blocks(_bounded(values))))
        else:
            out = self._walk(values, grad.shape).spread(grad)
        if self.mix != 1:
            out = self.mix * out + (1 - self.mix) * self.spread_hard(grad, x.detach())
        return _in_order_of(x, out.to(grad.dtype))

    def spread_hard(self, grad: Tensor, x: Tensor) -> Tensor:
        """The true gradient of the max pooling."""
        if self.split_ties and self._covers(x):
            largest = (x == self.pool(x)).to(grad.dtype)
            return grad * largest / largest.sum((-2, -1), keepdim=True)
        shape = self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        out: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *shape, self.argmax(x))
        return out

    def gather(self, values: Tensor, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """The transpose of `spread`: sum over each window of weight_i * values_i, [..., oH, oW]."""
        scaled = x.detach() if scale is None else wide(x) / scale
        if self.partitions(x):
            out = (self._softmax(self.blocks(_bounded(scaled))) * self.blocks(values)).sum(-1)
        else:
            out = self._walk(scaled, self.pool(x.detach()).shape).gather(values)
        return self._mixed_gather(out, values, x)

    def _mixed_gather(self, out: Tensor, values: Tensor, x: Tensor) -> Tensor:
        if self.mix != 1:
            if self.split_ties and self._covers(x):
                largest = (x == self.pool(x)).to(out.dtype)
                hard = (values * largest).sum((-2, -1), keepdim=True) / largest.sum((-2, -1), keepdim=True)
            else:
                hard = values.to(out.dtype).flatten(-2).gather(-1, self.argmax(x).flatten(-2)).view_as(out)
            out = self.mix * out + (1 - self.mix) * hard
        return out.to(values.dtype)

    def weights(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """The weights of the rule without `mix`, [..., window elements, oH, oW], in float32 at least."""
        scaled = wide(x) if scale is None else wide(x) / scale
        size = self.pool(scaled).shape
        padded = F.pad(_bounded(scaled), self.pads(x.shape, size), value=float("-inf"))
        return self._softmax(self.elements(padded, size)).movedim(-1, -3)

    def _covers(self, x: Tensor) -> bool:
        """Whether there is one window, which holds the whole plane."""
        return self.kernel == tuple(x.shape[-2:]) and self.padding == (0, 0) and self.dilation == (1, 1)

    def _walk(self, x: Tensor, size: torch.Size) -> WindowSoftmax:
        return WindowSoftmax(self, _bounded(x), size, self.temperature, self.full)

    def _softmax(self, windows: Tensor) -> Tensor:
        """The weights of windows [..., elements]; padding, at -inf, has none."""
        top = windows.amax(-1, keepdim=True).clamp_min(-_bound(windows))
        depth = ((windows - top) / self.temperature).clamp(min=DEEPEST)
        excitation = depth.exp()
        weights = excitation / excitation.sum(-1, keepdim=True).clamp_min(1)
        return weights * (1 + depth - (weights * depth).sum(-1, keepdim=True)) if self.full else weights

    # Fast: one exponential for each input element, not one for each element of each window, and sums over windows.
    # Exact as long as no window's exponentials run out of digits; on the CPU that is looked up, elsewhere looking
    # would stall the device.

    def _shared_excitation(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """d_i = (x_i - shift) / T <= 0, with one shift for each plane, and exp(d_i); None where it would not be exact.

        No window's sum is much above one, and none below the `DEPTH` given for the dtype: what an upstream gradient is
        divided by takes no digits from small ones and does not overflow large ones.
        """
        plain = type(x) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling() and not in_transforms()
        if self.dilation != (1, 1) or x.device.type != "cpu" or not plain or x.numel() == 0:
            return None
        values = wide(x)
        room = DEPTH[values.dtype] * self.temperature
        least, top = torch.aminmax(values.permute(0, 2, 3, 1) if _channels_last(values) else values)
        if not float(top - least) < room:  # also where it is nan
            top = values.amax((-2, -1), keepdim=True)
            if not float((wide(self.pool(_pooling_order(x))) - top).amin()) > -room:
                return None
        depth = (values - top).mul_(1 / self.temperature)
        if not self.full:
            return depth, depth.exp_()
        depth.clamp_(min=DEEPEST)
        return depth, depth.exp()

    def _spread_shared(self, grad: Tensor, depth: Tensor, excitation: Tensor) -> Tensor:
        total = self._sum(excitation)
        share = grad / total
        if not self.full:
            if self._tiles(excitation):
                return self._fill_tiles(share, excitation)
            return self._unsum(share, excitation).mul_(excitation)
        mean = self._sum(excitation * depth).div_(total)
        out = self._unsum(share, excitation).mul_(depth + 1)
        return out.sub_(self._unsum(share * mean, excitation)).mul_(excitation)

    def _sum(self, x: Tensor) -> Tensor:
        """The sum over each window; padding counts as zero."""
        if self._tiles(x):
            for axis in (-2, -1):
                first, *others = (along(x, axis, slice(i, None, self.kernel[axis])) for i in range(self.kernel[axis]))
                x = sum(others, first)
            return x
        if _channels_last(x):
            return F.avg_pool2d(x, self.kernel, self.stride, self.padding, self.ceil_mode, True, divisor_override=1)
        for axis, size in zip((-2, -1), self._output_size(x), strict=True):
            out = x.new_zeros(*x.shape[:axis], size, *x.shape[x.dim() + axis + 1 :])
            for inner, outer in self._steps(axis, x.shape[axis], size):
                along(out, axis, outer).add_(along(x, axis, inner))
            x = out
        return x

    def _unsum(self, x: Tensor, like: Tensor) -> Tensor:
        """The transpose of `_sum`: for each input element the sum over the windows that hold it."""
        if _channels_last(like):
            settings = self.kernel, self.stride, self.padding, self.ceil_mode, True, 1
            pooled: Tensor = torch.ops.aten.avg_pool2d_backward(x, like, *settings)
            return pooled
        for axis in (-1, -2):
            out = x.new_zeros(*x.shape[:axis], like.shape[axis], *x.shape[x.dim() + axis + 1 :])
            for inner, outer in self._steps(axis, like.shape[axis], x.shape[axis]):
                along(out, axis, inner).add_(along(x, axis, outer))
            x = out
        return x

    def _tiles(self, x: Tensor) -> bool:
        """Whether each element of a tensor in contiguous order lies in exactly one window."""
        return self.partitions(x) and x.is_contiguous()

    def _fill_tiles(self, share: Tensor, excitation: Tensor) -> Tensor:
        """Each element times the share of its window, in the place of `excitation`."""
        rows = share.new_empty(*share.shape[:-1], excitation.shape[-1])
        for place in range(self.kernel[1]):
            rows[..., place :: self.kernel[1]] = share
        excitation.view(*excitation.shape[:-2], -1, self.kernel[0], excitation.shape[-1]).mul_(rows.unsqueeze(-2))
        return excitation

    def _output_size(self, x: Tensor) -> tuple[int, int]:
        shape = self.pool(x.new_empty(1, *x.shape[-2:], device="meta")).shape
        return shape[-2], shape[-1]

    def _steps(self, axis: int, size: int, out: int) -> Iterator[tuple[slice, slice]]:
        """For each place in the window, along an axis: the inputs that stand there, and the windows they stand in."""
        kernel, stride, padding = self.kernel[axis], self.stride[axis], self.padding[axis]
        for place in range(kernel):
            first = max(0, -((place - padding) // stride))
            count = min(out, (size - 1 + padding - place) // stride + 1) - first
            if count > 0:
                start = first * stride - padding + place
                yield slice(start, start + (count - 1) * stride + 1, stride), slice(first, first + count)
