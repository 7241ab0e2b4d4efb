r"""The rules by forward gradient injection, with no autograd Function of their own (arXiv 2406.00177).

Every rule is :math:`y = (m - sg(m)) + sg(f)`: f is the true value, m what has the surrogate's gradient, and sg holds
constant. The order of the terms matters: m - sg(m) is zero exactly, so the value is f, bit for bit, wherever m is
finite. It is made of ordinary operations, so it goes where autograd Functions do not: torch.export, forward-mode
differentiation, every transform of torch.func. It keeps more and takes longer than the Functions of
`softgate.surrogate.functional`, whose gradients it has.

A function here has the arguments of its namesake there; `match` is refused: m does not know the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import require
from softgate.surrogate import pools
from softgate.surrogate.choices import choose, shares, weigh
from softgate.surrogate.functional import (
    GateFn,
    PiecewiseLinear,
    Size,
    slope_of,
    smooth_factor,
    soft_pooling,
    window_of,
)
from softgate.surrogate.held_norm import Norm, mixed
from softgate.surrogate.numerics import wide
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.smooth import Smooth


def injected(value: Tensor, surrogate: Tensor) -> Tensor:
    """(m - sg(m)) + sg(value): `value`, bit for bit where m is finite, with the gradient of m.

    Args:
        value: Any shape.
        surrogate: m, of that shape and dtype.
    """
    return value.detach() + (surrogate - surrogate.detach())  # in the memory order of the first term


def damped(x: Tensor, share: float = 0.0) -> Tensor:
    """`x` as it is, with a share of its gradient; as `softgate.surrogate.attention_paths.damped`."""
    return injected(x, share * x)


def gated(
    z: Tensor,
    activation: GateFn,
    shape: PiecewiseLinear | Smooth,
    gate: GateFn,
    inplace: bool = False,
    scale: Tensor | None = None,
) -> Tensor:
    """An activation forward, a rule's factor times the pre-activation backward; as `functional.gated`."""
    out = _gated(z.clone() if inplace else z, activation, shape, gate, scale)
    return z.copy_(out) if inplace else out


def _gated(
    z: Tensor, activation: GateFn, shape: PiecewiseLinear | Smooth, gate: GateFn, scale: Tensor | None
) -> Tensor:
    return injected(activation(z.detach()), z * _factor(z.detach(), shape, _rule(gate), scale).to(z.dtype))


def _factor(z: Tensor, shape: PiecewiseLinear | Smooth, rule: Surrogate, scale: Tensor | None) -> Tensor:
    """What the backward pass multiplies by."""
    if isinstance(shape, Smooth):
        return smooth_factor(rule, shape, z, scale)
    z = wide(z)
    out = torch.full_like(z, shape.base)
    steps = (*shape.on_kink, *(0.0,) * len(shape.kinks))
    for (slope, kink), step in zip(shape.kinks, steps, strict=False):  # more steps than kinks
        at = z - kink
        out = out + slope * rule(at if scale is None else at / scale)
        if step and rule.mix != 1:
            out = out + slope * step * (1 - rule.mix) / rule.rms * (at == 0)
    return out


def _rule(gate: GateFn) -> Surrogate:
    assert isinstance(gate, Surrogate)
    _refuse(gate.matches)
    return gate


def _refuse(match: bool) -> None:
    """Raises `SoftgateError` where gradients are to be rescaled, which are not known in the forward pass."""
    require(
        not match,
        "surrogate.gain=matched: backend=fgi takes raw and unit_rms; what a gradient is rescaled by is known in the "
        "backward pass alone.",
    )


def prelu(z: Tensor, weight: Tensor, gate: GateFn, scale: Tensor | None = None) -> Tensor:
    """PReLU forward; as `functional.prelu`."""
    slope = slope_of(weight, z)
    opened = injected(F.relu(z.detach()), z * _rule(gate)(wide(z) if scale is None else wide(z) / scale).to(z.dtype))
    return injected(F.prelu(z.detach(), weight.detach()), slope * z + (1 - slope) * opened)


def max_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    pool: pools.Pool,
    **options: Any,
) -> Tensor:
    """Max pooling forward, the weights of `pool` backward; as `functional.max_pool2d`."""
    return _max_pool2d(x, window_of(kernel_size, stride, padding, dilation, ceil_mode), pool, **options)


def _max_pool2d(
    x: Tensor,
    window: Any,
    pool: pools.Pool,
    mix: float = 1.0,
    match: bool = False,
    scale: Tensor | None = None,
    split_ties: bool = False,
) -> Tensor:
    _refuse(match)
    held = x.detach()
    weights = soft_pooling(window, pool).weights(held, scale)
    if mix != 1:
        places = torch.arange(window.kernel[0] * window.kernel[1], device=x.device).view(-1, 1, 1)
        hard = shares(window, held) if split_ties else choose(window, held).unsqueeze(-3) == places
        weights = torch.lerp(hard.to(weights.dtype), weights, mix)
    return injected(window.pool(held), weigh(window, x, weights.to(x.dtype)))


def held_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, mix: float = 1.0, match: bool = False
) -> Tensor:
    """A normalisation forward, with constant statistics backward; as `held_norm.held_norm`."""
    _refuse(match)
    true = norm.run(x, weight, bias)
    return injected(true, mixed(norm.affine(x, weight, bias, *norm.statistics(x)), true, mix))
