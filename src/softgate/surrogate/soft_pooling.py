"""Soft pooling: the linear map that a pooling rule applies to the gradient of one max pooling, and its transpose.

The arithmetic behind `softgate.surrogate.functional.max_pool2d`. Differentiated twice, the weights are constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.surrogate.numerics import in_transforms, matched, wide

RANGE = {torch.float32: 60.0, torch.float64: 300.0}
"""How far from zero exponents may lie: window sums of exponentials then neither overflow nor lose digits."""


def _channels_last(x: Tensor) -> bool:
    if x.dim() != 4 or in_transforms():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _along(x: Tensor, axis: int, part: slice) -> Tensor:
    """A slice of a spatial axis, -2 or -1."""
    piece: Tensor = torch.ops.aten.slice(x, axis, part.start, part.stop, part.step or 1)
    return piece


def _pooling_order(x: Tensor) -> Tensor:
    """`x` in channels-last order on the CPU, where PyTorch's pooling is many times faster in it."""
    fits = x.dim() == 4 and x.device.type == "cpu" and not torch.compiler.is_compiling() and not in_transforms()
    return x.contiguous(memory_format=torch.channels_last) if fits else x


def _in_order_of(x: Tensor, out: Tensor) -> Tensor:
    """`out` in the memory order of `x`."""
    if in_transforms():
        return out
    return out.contiguous(memory_format=torch.channels_last if _channels_last(x) else torch.contiguous_format)


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

    def slices(self, padded: Tensor, out: torch.Size) -> Iterator[Tensor]:
        """For each offset in the window, the [..., oH, oW] view of `padded` that it touches."""
        (sh, sw), (dh, dw) = self.stride, self.dilation
        for top in range(0, self.kernel[0] * dh, dh):
            for left in range(0, self.kernel[1] * dw, dw):
                rows = slice(top, top + (out[-2] - 1) * sh + 1, sh)
                yield padded[..., rows, left : left + (out[-1] - 1) * sw + 1 : sw]


@dataclass(frozen=True)
class SoftPooling(Window):
    """One max pooling: its geometry, and the linear map its backward pass applies, both ways.

    With the maximum y at hand, e_i = exp(d_i), d_i = (x_i - y)/T <= 0, needs no further shift and no index tensor:
    the windows are walked as k*k strided slices, once to sum Z and once to use the weights w_i = e_i/Z, or, for
    softmax_full, w_i (1 + d_i - S) with S = sum of w_i d_i, which is Listing 2's 1 + (x_i - s)/T.
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
        if self._covers(x):
            out = grad * self._plane(values)
        elif shared is None:
            ordered, upstream = _pooling_order(values), _pooling_order(grad)
            out = self._spread_slices(upstream, ordered, self.pool(ordered))
        else:
            out = self._spread_shared(grad, *shared)
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

    def _covers(self, x: Tensor) -> bool:
        """Whether there is one window, which holds the whole plane."""
        return self.kernel == tuple(x.shape[-2:]) and self.padding == (0, 0) and self.dilation == (1, 1)

    def _plane(self, x: Tensor) -> Tensor:
        """The weights of one window over the whole plane, [..., H, W]: one softmax."""
        values = wide(x)
        bound = torch.finfo(values.dtype).max / 4
        values = values.clamp(-bound, bound).flatten(-2)
        depth = (values - values.amax(-1, keepdim=True)) / self.temperature
        depth = depth.clamp(min=-1e4)
        excitation = depth.exp()
        weights = excitation / excitation.sum(-1, keepdim=True)
        if self.full:
            weights = weights * (1 + depth - (weights * depth).sum(-1, keepdim=True))
        return weights.view(x.shape)

    def gather(self, values: Tensor, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """The transpose of `spread`: sum over each window of weight_i * values_i, [..., oH, oW]."""
        scaled = x if scale is None else wide(x) / scale
        if self._covers(x):
            out = (self._plane(scaled) * values).sum((-2, -1), keepdim=True)
            return self._mixed_gather(out, values, x)
        y = self.pool(scaled)
        padded, top, total, mean = self._prepare(scaled, y)
        source = F.pad(values.to(padded.dtype), self.pads(x.shape, y.shape))
        out = torch.zeros_like(top)
        for piece, part in zip(self.slices(padded, y.shape), self.slices(source, y.shape), strict=True):
            out += self._weight(piece, top, mean).mul_(part)
        return self._mixed_gather(out / total, values, x)

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
        if self._covers(x):
            return self._plane(scaled).flatten(-2)[..., None, None]
        y = self.pool(scaled)
        padded, top, total, mean = self._prepare(scaled, y)
        return torch.stack([self._weight(piece, top, mean) / total for piece in self.slices(padded, y.shape)], -3)

    # Fast: one exponential for each input element, not one for each element of each window, and sums over windows.
    # Exact as long as no window's exponentials run out of digits; on the CPU that is looked up, elsewhere looking
    # would stall the device.

    def _shared_excitation(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """d_i = (x_i - shift) / T, with one shift for each plane, and exp(d_i); None where slices must be walked."""
        plain = type(x) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling() and not in_transforms()
        if self.dilation != (1, 1) or x.device.type != "cpu" or not plain or x.numel() == 0:
            return None
        values = wide(x)
        room = RANGE[values.dtype] * self.temperature
        least, greatest = torch.aminmax(values.permute(0, 2, 3, 1) if _channels_last(values) else values)
        if float(least) > -room and float(greatest) < room:
            depth = values * (1 / self.temperature)
        else:
            top = values.amax((-2, -1), keepdim=True)
            if not float((wide(self.pool(x)) - top).amin()) > -room:  # also where it is nan
                return None
            depth = (values - top).div_(self.temperature)
        if not self.full:
            return depth, depth.exp_()
        depth.clamp_(min=-1e4)
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
                first, *others = (_along(x, axis, slice(i, None, self.kernel[axis])) for i in range(self.kernel[axis]))
                x = sum(others, first)
            return x
        if _channels_last(x):
            return F.avg_pool2d(x, self.kernel, self.stride, self.padding, self.ceil_mode, True, divisor_override=1)
        for axis, size in zip((-2, -1), self._output_size(x), strict=True):
            out = x.new_zeros(*x.shape[:axis], size, *x.shape[x.dim() + axis + 1 :])
            for inner, outer in self._steps(axis, x.shape[axis], size):
                _along(out, axis, outer).add_(_along(x, axis, inner))
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
                _along(out, axis, inner).add_(_along(x, axis, outer))
            x = out
        return x

    def _tiles(self, x: Tensor) -> bool:
        """Whether each element of a tensor in contiguous order lies in exactly one window."""
        return (
            self.kernel == self.stride
            and self.padding == (0, 0)
            and x.shape[-2] % self.kernel[0] == x.shape[-1] % self.kernel[1] == 0
            and x.is_contiguous()
        )

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

    # Always right: the windows as strided slices, each shifted by its own maximum.

    def _spread_slices(self, grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
        padded, top, total, mean = self._prepare(x, y)
        share = grad / total
        out = torch.zeros_like(padded)
        for piece, target in zip(self.slices(padded, y.shape), self.slices(out, y.shape), strict=True):
            target += self._weight(piece, top, mean).mul_(share)
        height, width = x.shape[-2:]
        return out[..., self.padding[0] : self.padding[0] + height, self.padding[1] : self.padding[1] + width]

    def _prepare(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The padded input, the maxima, Z, and S where it is needed.

        Infinities are clamped to a quarter of the number range, so that inf - inf cannot arise; the padding, at
        -inf, gets exactly no weight.
        """
        values = wide(x)
        bound = torch.finfo(values.dtype).max / 4
        values, top = values.clamp(-bound, bound), wide(y).clamp(-bound, bound)
        pads = self.pads(x.shape, y.shape)
        padded = F.pad(values, pads, value=float("-inf")) if any(pads) else values
        total = torch.zeros_like(top)
        mean = torch.zeros_like(top) if self.full else None
        for piece in self.slices(padded, y.shape):
            if mean is None:
                total += (piece - top).div_(self.temperature).exp_()
            else:
                depth = self._depth(piece, top)
                excitation = depth.exp()
                total += excitation
                mean += excitation.mul_(depth)
        return padded, top, total, None if mean is None else mean / total

    def _weight(self, piece: Tensor, top: Tensor, mean: Tensor | None) -> Tensor:
        """The weight of one slice, before division by Z."""
        if mean is None:
            return (piece - top).div_(self.temperature).exp_()
        depth = self._depth(piece, top)
        return depth.exp().mul_(depth.sub_(mean).add_(1))

    def _depth(self, piece: Tensor, top: Tensor) -> Tensor:
        """d_i, no lower than -1e4, where exp is 0 in every dtype: 0 * inf must not arise."""
        return (piece - top).div_(self.temperature).clamp_(min=-1e4)


def soft_max_pool2d(x: Tensor, scale: Tensor | None, pooling: SoftPooling) -> Tensor:
    """The true max pooling forward; `SoftPooling` backward."""
    function = _SoftMaxPool2dInTransforms if in_transforms() else _SoftMaxPool2d
    out: Tensor = function.apply(x, scale, pooling)
    return out


def _weigh(values: Tensor, x: Tensor, scale: Tensor | None, pooling: SoftPooling, transpose: bool) -> Tensor:
    """`spread`, or its transpose `gather`: linear in the first argument, the weights held constant."""
    function = _WeighInTransforms if in_transforms() else _Weigh
    out: Tensor = function.apply(values, x, scale, pooling, transpose)
    return out


def _pull(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    """Spreads the gradient, and matches its norm to the true gradient's where the pooling says so."""
    x, scale = ctx.saved_tensors
    out = _weigh(grad, x, scale, ctx.pooling, False)
    if ctx.pooling.match:
        with torch.no_grad():
            hard = ctx.pooling.spread_hard(grad, x)
        out = matched(out, hard)
    return out, None, None


def _pull_again(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    x, scale = ctx.saved_tensors
    return _weigh(grad, x, scale, ctx.pooling, not ctx.transpose), None, None, None, None


class _SoftMaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, pooling: SoftPooling) -> Tensor:
        # The maxima are not kept: the caller may overwrite them, and finding them again is cheap.
        ctx.save_for_backward(x, scale)
        ctx.pooling, ctx.adds_constant = pooling, False
        return pooling.pool(x)

    backward = staticmethod(_pull)


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, scale: Tensor | None, pooling: SoftPooling, transpose: bool
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.pooling, ctx.transpose = pooling, transpose
        return (pooling.gather if transpose else pooling.spread)(values, x, scale)

    backward = staticmethod(_pull_again)


# The same for torch.func, which wants a setup_context; that costs every call 0.1 ms.


class _SoftMaxPool2dInTransforms(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor | None, pooling: SoftPooling) -> Tensor:
        return pooling.pool(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, SoftPooling], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.pooling, ctx.adds_constant = inputs[2], False

    backward = staticmethod(_pull)


class _WeighInTransforms(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, x: Tensor, scale: Tensor | None, pooling: SoftPooling, transpose: bool) -> Tensor:
        return (pooling.gather if transpose else pooling.spread)(values, x, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:3])
        ctx.pooling, ctx.transpose = inputs[3:]

    backward = staticmethod(_pull_again)
