r"""ReLU and max pooling with their true forward pass and a surrogate backward pass.

Both functions return bit for bit what `torch.nn.functional` returns. Backward, ReLU multiplies the upstream
gradient by a gate :math:`\lambda(z)` in place of :math:`1[z>0]`, and max pooling spreads it over the window
with the weights of a pooling rule in place of all to the maximum.

Differentiated twice, the gate and the weights are constants: the second derivative flows through the
upstream gradient only (paper 6.1: one should not differentiate through the excitation gates).

Gate arithmetic is done in float32 at least, also for half-precision activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from softgate.errors import SoftgateError
from softgate.surrogate import activations, gates, pools
from softgate.surrogate.numerics import in_transforms, matched, wide
from softgate.surrogate.parts import smooth_rms_gain
from softgate.surrogate.pool_function import soft_max_pool2d
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.smooth import Smooth
from softgate.surrogate.soft_pooling import SoftPooling
from softgate.surrogate.windows import Window

Size = int | tuple[int, ...] | list[int]
GateFn = Callable[[Tensor], Tensor]


class _Gated(torch.autograd.Function):
    """An activation forward; backward, what `through` makes of the gradient and the pre-activation."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: Tensor | None, activation: GateFn, through: _Through) -> Tensor:
        ctx.save_for_backward(z, scale)
        ctx.through, ctx.adds_constant = through, through.shape.adds_constant
        return activation(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.through.pull(grad, *ctx.saved_tensors), None, None, None


class _GatedInTransforms(torch.autograd.Function):
    """The same for torch.func; a setup_context costs every call 0.1 ms, so it is not the only one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, scale: Tensor | None, activation: GateFn, through: _Through) -> Tensor:
        return activation(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, GateFn, _Through], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.through, ctx.adds_constant = inputs[3], inputs[3].shape.adds_constant

    backward = _Gated.backward


@dataclass(frozen=True)
class PiecewiseLinear:
    """A piecewise linear activation, base * z + sum of slope_k relu(z - kink_k), up to a constant.

    Its true derivative is base + sum of slope_k 1[z > kink_k]; a gate takes the place of each step. ReLU6 is
    ((1, 0), (-1, 6)); LeakyReLU with negative slope s is base s and ((1 - s, 0),).

    Attributes:
        base: The slope below all kinks.
        kinks: For each kink by how much the slope grows there, and where it stands.
        on_kink: PyTorch's step for each kink where z stands exactly on it: 0 at a ReLU's, 1 at that of clamp(min=0) and
            at the upper end of ReLU6; left out, 0 for all.
    """

    base: float
    kinks: tuple[tuple[float, float], ...]
    on_kink: tuple[float, ...] = ()

    @property
    def adds_constant(self) -> bool:
        """Whether it is more than linear with its gates held fixed: a kink elsewhere than at zero adds a constant."""
        return any(kink != 0 for _, kink in self.kinks)


RELU = PiecewiseLinear(0.0, ((1.0, 0.0),))


@dataclass(frozen=True)
class _Through:
    """The backward pass of an activation: a gate at each kink of a piecewise linear one, a smooth one's own gate."""

    shape: PiecewiseLinear | Smooth
    gate: GateFn

    def pull(self, grad: Tensor, z: Tensor, scale: Tensor | None) -> Tensor:
        """The gradient at `z`; its norm matched to the true gradient's where the gate says so."""
        if isinstance(self.shape, Smooth):
            return self._smooth(self.shape, grad, z, scale)
        out = self._steps(self.shape, self.gate, grad, z, scale)
        if not isinstance(self.gate, Surrogate):
            return out
        if self.gate.mix != 1:
            out = self._on_kinks(self.shape, out, (1 - self.gate.mix) / self.gate.rms, grad, z)
        if self.gate.matches:
            true = self._steps(self.shape, gates.Hard(), grad.detach(), z, None)
            out = matched(out, self._on_kinks(self.shape, true, 1.0, grad.detach(), z))
        return out

    def _on_kinks(self, shape: PiecewiseLinear, out: Tensor, share: float, grad: Tensor, z: Tensor) -> Tensor:
        """Adds what the true gradient, of which `out` has a share, is more than the hard gate's exactly on a kink."""
        for (slope, kink), step in zip(shape.kinks, shape.on_kink, strict=False):  # none left out: no step
            if step:
                out = out + share * slope * step * grad * (z == kink)
        return out

    def _steps(self, shape: PiecewiseLinear, gate: GateFn, grad: Tensor, z: Tensor, scale: Tensor | None) -> Tensor:
        if shape is RELU:
            return _pull(gate, grad, z, scale)
        out = shape.base * grad
        for slope, kink in shape.kinks:
            out = out + slope * _pull(gate, grad, wide(z) - kink, scale)
        return out

    def _smooth(self, shape: Smooth, grad: Tensor, z: Tensor, scale: Tensor | None) -> Tensor:
        rule = self.gate
        assert isinstance(rule, Surrogate)
        warm, at = _temperature(rule, shape), z.detach() if scale is None else wide(z) / scale
        same = grad.dtype == at.dtype
        out = shape.pull(grad, at, warm) if same else shape.pull(grad.to(at.dtype), at, warm).to(grad.dtype)
        if rule.mix != 1:
            out = torch.lerp(shape.derivative(grad.to(z.dtype), z).to(grad.dtype), out, rule.mix)
        if rule.gain == "unit_rms":
            out = out / smooth_rms_gain(shape, warm, rule.mix)
        return matched(out, shape.derivative(grad.detach().to(z.dtype), z)) if rule.matches else out


def _temperature(rule: Surrogate, shape: Smooth) -> float:
    held = rule.activation
    if not isinstance(held, activations.SelfGate):
        raise SoftgateError(f"surrogate.activation={held}: {shape.kind} has a backward pass under SelfGate only.")
    return held.of(shape.kind)


def smooth_factor(rule: Surrogate, shape: Smooth, z: Tensor, scale: Tensor | None = None) -> Tensor:
    """What the backward pass of a smooth activation multiplies by under a rule: gate, mix and unit_rms gain together.

    Args:
        rule: The rule; its activation is a `SelfGate`.
        shape: The activation.
        z: Pre-activations, any shape.
        scale: As in `relu`.

    Returns:
        Factors of the shape of `z`, float32 or float64.
    """
    z = wide(z)
    return _Through(shape, rule).pull(torch.ones_like(z), z, scale)


class _Injected(torch.autograd.Function):
    """One value forward, the gradient of another one backward."""

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad

    generate_vmap_rule = True


def injected(value: Tensor, surrogate: Tensor) -> Tensor:
    """`value`, bit for bit, with the gradient of `surrogate` (forward gradient injection, arXiv 2406.00177).

    Args:
        value: Any shape.
        surrogate: Of that shape and dtype.
    """
    out: Tensor = _Injected.apply(value.detach(), surrogate)
    return out


def slope_of(weight: Tensor, z: Tensor) -> Tensor:
    """The slopes [1] or [C] of PReLU in a shape that broadcasts against `z`."""
    return weight.view(-1, *(1,) * (z.dim() - 2)) if z.dim() > 1 and weight.numel() > 1 else weight.view(())


def prelu(z: Tensor, weight: Tensor, gate: GateFn, scale: Tensor | None = None) -> Tensor:
    r"""PReLU forward; backward :math:`a + (1 - a)\lambda(z/s)` to `z`, the true gradient to the slopes a.

    Args:
        z: [B, C, ...] pre-activations.
        weight: [1] or [C] slopes below zero.
        gate: As in `relu`.
        scale: As in `relu`.

    Returns:
        `torch.nn.functional.prelu(z, weight)`, bit for bit.
    """
    slope = slope_of(weight, z)
    open_part = relu(z, gate, scale=scale)
    with torch.no_grad():
        value = F.prelu(z, weight)
    return injected(value, slope * z + (1 - slope) * open_part)


def _pull(gate: GateFn, grad: Tensor, z: Tensor, scale: Tensor | None) -> Tensor:
    """The gradient through a gate at z / scale."""
    if scale is not None:
        z = wide(z) / scale
    if not isinstance(gate, (gates.Gate, Surrogate)):
        return (grad * gate(wide(z))).to(grad.dtype)
    if grad.dtype == z.dtype:
        return gate.pull(grad, z)
    return gate.pull(grad.to(z.dtype), z).to(grad.dtype)


def relu(z: Tensor, gate: GateFn, inplace: bool = False, scale: Tensor | None = None) -> Tensor:
    r"""ReLU forward, :math:`\partial L/\partial z = \lambda(z/s)\,\partial L/\partial y` backward (Listing 1).

    Args:
        z: Pre-activations, any shape.
        gate: A `softgate.gates.Gate`, a `softgate.Surrogate`, or any function from pre-activations to gate values
            of the same shape.
        inplace: Overwrite `z` with the result, as `torch.relu_` does. This costs a copy: the pre-activation must
            be kept for the backward pass, and its storage is about to change.
        scale: s > 0, broadcastable to `z`: the unit of the gate's temperature, such as each channel's standard
            deviation as [C, 1, 1]; 1 if left out.

    Returns:
        `torch.relu(z)`, bit for bit, with the shape of `z`.
    """
    return gated(z, F.relu, RELU, gate, inplace, scale)


def gated_by(z: Tensor, by: Tensor) -> Tensor:
    r"""A pre-activation through the hard gate of another one, :math:`1[u > 0]\,z` (arXiv 2006.10529, section 2).

    The gate of a deep gated network's value network. Under `softgate.attach` each call is a ReLU's call site with
    the pre-activation u: a rule's gate of u takes the place of the step in the gradient to `z`, and none goes to u.

    Args:
        z: Any shape; what is gated.
        by: u, of that shape; whose sign opens the gate.

    Returns:
        `z` where u > 0, else 0; `torch.relu(z)`, bit for bit, where u is z.
    """
    if has_torch_function((z, by)):
        out: Tensor = handle_torch_function(gated_by, (z, by), z, by)
        return out
    return torch.where(by > 0, z, torch.zeros((), dtype=z.dtype, device=z.device))


def gated(
    z: Tensor,
    activation: GateFn,
    shape: PiecewiseLinear | Smooth,
    gate: GateFn,
    inplace: bool = False,
    scale: Tensor | None = None,
) -> Tensor:
    """An activation forward; backward `gate` in place of its steps, or a smooth one's own gate.

    Args:
        z: Pre-activations, any shape.
        activation: The activation; computes the forward value and must not work in place.
        shape: Where its slope changes, and by how much; or the smooth activation that it is.
        gate: As in `relu`; for a smooth activation a `softgate.Surrogate`, whose `activation` is a `SelfGate`.
        inplace: As in `relu`.
        scale: As in `relu`.

    Returns:
        `activation(z)`, bit for bit.
    """
    function = _GatedInTransforms if in_transforms() else _Gated
    out: Tensor = function.apply(z.clone() if inplace else z, scale, activation, _Through(shape, gate))
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
    match: bool = False,
    scale: Tensor | None = None,
    split_ties: bool = False,
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
        match: Rescale each image's gradient to the norm of its true gradient; a [C, H, W] is one image.
        scale: s > 0, broadcastable to `x`: the unit of the temperature, such as [C, 1, 1]; 1 if left out.
        split_ties: The true gradient of a window over the whole plane is shared among equal maxima, as in torch.amax.

    Returns:
        `torch.nn.functional.max_pool2d(x, ...)`, bit for bit.

    Raises:
        SoftgateError: For a rule that has no backward pass here.
    """
    window = window_of(kernel_size, stride, padding, dilation, ceil_mode)
    if isinstance(pool, pools.Hard) or mix == 0:
        return window.pool(x)
    return soft_max_pool2d(x, scale, soft_pooling(window, pool, mix, match, split_ties))


def window_of(
    kernel_size: Size, stride: Size | None = None, padding: Size = 0, dilation: Size = 1, ceil_mode: bool = False
) -> Window:
    """The geometry that the arguments of a max pooling describe; as in `max_pool2d`."""
    step = stride if isinstance(stride, int) or stride else kernel_size
    return Window(
        _pair("kernel_size", kernel_size),
        _pair("stride", step),
        _pair("padding", padding),
        _pair("dilation", dilation),
        bool(ceil_mode),
    )


def soft_pooling(
    window: Window, pool: pools.Pool, mix: float = 1.0, match: bool = False, split_ties: bool = False
) -> SoftPooling:
    """A max pooling of a geometry under a pooling rule.

    Raises:
        SoftgateError: For a rule that has no backward pass here.
    """
    if not isinstance(pool, (pools.LSE, pools.SoftmaxFull)):
        raise SoftgateError(f"pool={pool}: max_pool2d knows the pools Hard, LSE and SoftmaxFull.")
    geometry = (window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode)
    return SoftPooling(*geometry, pool.temperature, isinstance(pool, pools.SoftmaxFull), mix, match, split_ties)
