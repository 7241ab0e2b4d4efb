r"""ReLU and max pooling with their true forward pass and a surrogate backward pass.

Both functions return bit for bit what `torch.nn.functional` returns. Backward, ReLU multiplies the upstream
gradient by a gate :math:`\lambda(z)` in place of :math:`1[z>0]`, and max pooling spreads it over the window
with the weights of a pooling rule in place of all to the maximum.

Differentiated twice, the gate and the weights are constants: the second derivative flows through the
upstream gradient only (paper 6.1: one should not differentiate through the excitation gates).

Gate arithmetic is done in float32 at least, also for half-precision activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate import pools
from softgate.errors import SoftgateError

Size = int | tuple[int, ...] | list[int]
GateFn = Callable[[Tensor], Tensor]


def _wide(x: Tensor) -> Tensor:
    """`x` detached, in float32 if it is a half-precision tensor."""
    x = x.detach()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _GatedReLU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, gate: GateFn) -> Tensor:
        return F.relu(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, GateFn], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.gate = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return (grad * ctx.gate(_wide(z))).to(grad.dtype), None


def relu(z: Tensor, gate: GateFn, inplace: bool = False) -> Tensor:
    r"""ReLU forward, :math:`\partial L/\partial z = \lambda(z)\,\partial L/\partial y` backward (Listing 1).

    Args:
        z: Pre-activations, any shape.
        gate: A `softgate.gates.Gate` or any function from pre-activations to gate values of the same shape.
        inplace: Overwrite `z` with the result, as `torch.relu_` does. This costs a copy: the pre-activation must
            be kept for the backward pass, and its storage is about to change.

    Returns:
        `torch.relu(z)`, bit for bit, with the shape of `z`.
    """
    out: Tensor = _GatedReLU.apply(z.clone() if inplace else z, gate)
    return z.copy_(out) if inplace else out


@dataclass(frozen=True)
class PiecewiseLinear:
    """A piecewise linear activation, base * z + sum of slope_k relu(z - kink_k), up to a constant.

    Its true derivative is base + sum of slope_k 1[z > kink_k]; a gate takes the place of each step. ReLU6 is
    ((1, 0), (-1, 6)); LeakyReLU with negative slope s is base s and ((1 - s, 0),).
    """

    base: float
    kinks: tuple[tuple[float, float], ...]

    def factor(self, gate: GateFn) -> GateFn:
        """The factor on the upstream gradient, as a function of the pre-activation."""
        return _KinkedGate(self, gate)


@dataclass(frozen=True)
class _KinkedGate:
    shape: PiecewiseLinear
    gate: GateFn

    def __call__(self, z: Tensor) -> Tensor:
        out = torch.full_like(z, self.shape.base)
        for slope, kink in self.shape.kinks:
            out = out + slope * self.gate(z - kink)
        return out


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, activation: GateFn, factor: GateFn) -> Tensor:
        ctx.save_for_backward(z)
        ctx.gate = factor
        return activation(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return *_GatedReLU.backward(ctx, grad), None


def gated(z: Tensor, activation: GateFn, shape: PiecewiseLinear, gate: GateFn, inplace: bool = False) -> Tensor:
    """A piecewise linear activation forward, with `gate` in place of its steps backward.

    Args:
        z: Pre-activations, any shape.
        activation: The activation; computes the forward value and must not work in place.
        shape: Where its slope changes, and by how much.
        gate: As in `relu`.
        inplace: As in `relu`.

    Returns:
        `activation(z)`, bit for bit.
    """
    out: Tensor = _GatedActivation.apply(z.clone() if inplace else z, activation, shape.factor(gate))
    return z.copy_(out) if inplace else out


def _pair(option: str, value: Size) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    sizes = tuple(int(v) for v in value)
    if len(sizes) == 1:
        return sizes[0], sizes[0]
    if len(sizes) != 2:
        raise SoftgateError(f"max_pool2d: {option}={value}: an int or two ints are needed.")
    return sizes[0], sizes[1]


def _pooling_order(x: Tensor) -> Tensor:
    """`x` in channels-last order on the CPU, where PyTorch's pooling is many times faster in it."""
    fits = x.dim() == 4 and x.device.type == "cpu" and not torch.compiler.is_compiling()
    return x.detach().contiguous(memory_format=torch.channels_last) if fits else x.detach()


def _in_order_of(x: Tensor, out: Tensor) -> Tensor:
    """`out` in the memory order of `x`."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return out.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@dataclass(frozen=True)
class _SoftPooling:
    """One max pooling: its geometry, and the linear map its backward pass applies, both ways.

    With the maximum y at hand, e_i = exp(d_i), d_i = (x_i - y)/T <= 0, needs no further shift and no index tensor:
    the windows are walked as k*k strided slices, once to sum Z and once to use the weights w_i = e_i/Z, or, for
    softmax_full, w_i (1 + d_i - S) with S = sum of w_i d_i, which is Listing 2's 1 + (x_i - s)/T.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool
    temperature: float
    full: bool
    mix: float

    def pool(self, x: Tensor) -> Tensor:
        """The true max pooling."""
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def spread(self, grad: Tensor, x: Tensor) -> Tensor:
        """Distributes `grad` [..., oH, oW] over the windows: sum over windows of weight_i * grad, [..., H, W]."""
        given, x, grad = x, _pooling_order(x), _pooling_order(grad)
        y = self.pool(x)
        shared = self._shared_excitation(x, y)
        out = self._spread_slices(grad, x, y) if shared is None else self._spread_shared(grad, *shared)
        if self.mix != 1:
            index = self._argmax(x).flatten(-2)
            hard = torch.zeros_like(x, dtype=out.dtype).flatten(-2)
            hard = hard.scatter_add(-1, index, grad.to(out.dtype).flatten(-2)).view_as(out)
            out = self.mix * out + (1 - self.mix) * hard
        return _in_order_of(given, out.to(grad.dtype))

    def gather(self, values: Tensor, x: Tensor) -> Tensor:
        """The transpose of `spread`: sum over each window of weight_i * values_i, [..., oH, oW]."""
        y = self.pool(x)
        padded, top, total, mean = self._prepare(x, y)
        wide = F.pad(values.to(padded.dtype), self._pads(x.shape, y.shape))
        out = torch.zeros_like(top)
        for piece, source in zip(self._slices(padded, y.shape), self._slices(wide, y.shape), strict=True):
            out += self._weight(piece, top, mean).mul_(source)
        out = out / total
        if self.mix != 1:
            hard = values.to(out.dtype).flatten(-2).gather(-1, self._argmax(x).flatten(-2)).view_as(out)
            out = self.mix * out + (1 - self.mix) * hard
        return out.to(values.dtype)

    # Fast: one exponential for each input element, shifted by the maximum of its plane instead of its window's, and
    # PyTorch's own sum pooling. Exact as long as no window lies so far below its plane's maximum that its
    # exponentials run out of digits; on the CPU that is looked up, elsewhere looking would stall the device.

    def _shared_excitation(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """d_i = (x_i - plane's maximum) / T and exp(d_i), or None where the slices must be walked."""
        if self.dilation != (1, 1) or x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() == 0:
            return None
        wide = _wide(x)
        top = wide.amax((-2, -1), keepdim=True)
        deepest = float(((_wide(y) - top).amin()) / self.temperature)
        if not deepest > (-300 if wide.dtype == torch.float64 else -30):  # also where it is nan
            return None
        depth = (wide - top).div_(self.temperature)
        if self.full:
            depth.clamp_(min=-1e4)
        return depth, depth.exp()

    def _spread_shared(self, grad: Tensor, depth: Tensor, excitation: Tensor) -> Tensor:
        total = self._sum(excitation)
        share = grad / total
        if not self.full:
            return self._unsum(share, excitation).mul_(excitation)
        mean = self._sum(excitation * depth).div_(total)
        out = self._unsum(share, excitation).mul_(depth + 1)
        return out.sub_(self._unsum(share * mean, excitation)).mul_(excitation)

    def _sum(self, x: Tensor) -> Tensor:
        """The sum over each window; padding counts as zero."""
        return F.avg_pool2d(x, self.kernel, self.stride, self.padding, self.ceil_mode, True, divisor_override=1)

    def _unsum(self, x: Tensor, like: Tensor) -> Tensor:
        """The transpose of `_sum`: for each input element the sum over the windows that hold it."""
        settings = self.kernel, self.stride, self.padding, self.ceil_mode, True, 1
        out: Tensor = torch.ops.aten.avg_pool2d_backward(x, like, *settings)
        return out

    # Always right: the windows as strided slices, each shifted by its own maximum.

    def _spread_slices(self, grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
        padded, top, total, mean = self._prepare(x, y)
        share = grad / total
        out = torch.zeros_like(padded)
        for piece, target in zip(self._slices(padded, y.shape), self._slices(out, y.shape), strict=True):
            target += self._weight(piece, top, mean).mul_(share)
        height, width = x.shape[-2:]
        return out[..., self.padding[0] : self.padding[0] + height, self.padding[1] : self.padding[1] + width]

    def _prepare(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The padded input, the maxima, Z, and S where it is needed.

        Infinities are clamped to a quarter of the number range, so that inf - inf cannot arise; the padding, at
        -inf, gets exactly no weight.
        """
        wide = _wide(x)
        bound = torch.finfo(wide.dtype).max / 4
        wide, top = wide.clamp(-bound, bound), _wide(y).clamp(-bound, bound)
        pads = self._pads(x.shape, y.shape)
        padded = F.pad(wide, pads, value=float("-inf")) if any(pads) else wide
        total = torch.zeros_like(top)
        mean = torch.zeros_like(top) if self.full else None
        for piece in self._slices(padded, y.shape):
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

    def _argmax(self, x: Tensor) -> Tensor:
        shape = self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        return F.max_pool2d(x, *shape, return_indices=True)[1]

    def _pads(self, size: torch.Size, out: torch.Size) -> tuple[int, int, int, int]:
        """Padding (left, right, top, bottom) that holds every window; the far side covers ceil_mode."""
        far = []
        for axis in (-2, -1):
            reach = (out[axis] - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel[axis] - 1) + 1
            far.append(max(0, reach - size[axis] - self.padding[axis]))
        return self.padding[1], far[1], self.padding[0], far[0]

    def _slices(self, padded: Tensor, out: torch.Size) -> Iterator[Tensor]:
        """For each offset in the window, the [..., oH, oW] view of `padded` that it touches."""
        (sh, sw), (dh, dw) = self.stride, self.dilation
        for top in range(0, self.kernel[0] * dh, dh):
            for left in range(0, self.kernel[1] * dw, dw):
                rows = slice(top, top + (out[-2] - 1) * sh + 1, sh)
                yield padded[..., rows, left : left + (out[-1] - 1) * sw + 1 : sw]


class _SoftMaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pooling: _SoftPooling) -> Tensor:
        # The maxima are not kept: the caller may overwrite them, and finding them again is cheap.
        ctx.save_for_backward(x)
        ctx.pooling = pooling
        return pooling.pool(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Weigh.apply(grad, *ctx.saved_tensors, ctx.pooling, False), None


class _Weigh(torch.autograd.Function):
    """`spread`, or its transpose `gather`: linear in the first argument, the weights held constant."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, pooling: _SoftPooling, transpose: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pooling, ctx.transpose = pooling, transpose
        return (pooling.gather if transpose else pooling.spread)(values, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        back = _Weigh.apply(grad, *ctx.saved_tensors, ctx.pooling, not ctx.transpose)
        return back, None, None, None


def max_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    pool: pools.Pool,
    mix: float = 1.0,
) -> Tensor:
    r"""Max pooling forward, the weights of `pool` backward (paper 5.3).

    With `pools.LSE`, :math:`\partial y/\partial x_i = softmax(x/T)_i` over the window; with `pools.SoftmaxFull`,
    Listing 2's. Padding takes part in no window's softmax, so the gradient's mass is conserved.

    Args:
        x: [B, C, H, W] or [C, H, W].
        kernel_size: Window size, an int or two.
        stride: Step between windows, an int or two; `kernel_size` if left out.
        padding: Implicit border, an int or two.
        dilation: Step within a window, an int or two.
        ceil_mode: Round the output size up, as in `torch.nn.functional.max_pool2d`.
        pool: The pooling rule.
        mix: Share of the rule in the gradient; the rest, 1 - mix, is the true gradient.

    Returns:
        `torch.nn.functional.max_pool2d(x, ...)`, bit for bit.

    Raises:
        SoftgateError: For a rule that has no backward pass here.
    """
    step = stride if isinstance(stride, int) or stride else kernel_size
    if isinstance(pool, pools.Hard) or mix == 0:
        return F.max_pool2d(x, kernel_size, step, padding, dilation, ceil_mode)
    if not isinstance(pool, (pools.LSE, pools.SoftmaxFull)):
        raise SoftgateError(f"pool={pool}: max_pool2d knows the pools Hard, LSE and SoftmaxFull.")
    pooling = _SoftPooling(
        _pair("kernel_size", kernel_size),
        _pair("stride", step),
        _pair("padding", padding),
        _pair("dilation", dilation),
        bool(ceil_mode),
        pool.temperature,
        isinstance(pool, pools.SoftmaxFull),
        mix,
    )
    out: Tensor = _SoftMaxPool2d.apply(x, pooling)
    return out
