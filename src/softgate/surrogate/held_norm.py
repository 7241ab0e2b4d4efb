r"""Normalisation with its true forward pass and constant statistics backward.

LayerNorm, GroupNorm, InstanceNorm and RMSNorm divide by the standard deviation of their own input. Held constant, mean
and standard deviation leave an affine map: :math:`\partial y/\partial x = w / \sqrt{var + \epsilon}` (arXiv 2507.22832,
its later version, for LayerNorm). BatchNorm in eval mode is that already. Weight and bias get their true gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import SoftgateError
from softgate.surrogate.functional import injected
from softgate.surrogate.numerics import autocasts, in_transforms, matched, wide
from softgate.surrogate.selection import Kind


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation by the statistics of its own input, as its arguments describe it.

    Attributes:
        kind: Which one.
        shape: Of LayerNorm and RMSNorm the sizes of the last dimensions, which are normalised together.
        groups: Of GroupNorm how many groups the channels are in.
        eps: Is added to the variance; None is the dtype's resolution.
        running: Of InstanceNorm running mean and variance, which a pass updates, and the momentum.
    """

    kind: Kind
    shape: tuple[int, ...] = ()
    groups: int = 0
    eps: float | None = 1e-5
    running: tuple[Tensor | None, Tensor | None, float] = (None, None, 0.1)

    def run(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """What PyTorch's function returns."""
        if self.kind == Kind.LAYER_NORM:
            return F.layer_norm(x, self.shape, weight, bias, self.epsilon(x))
        if self.kind == Kind.RMS_NORM:
            return F.rms_norm(x, self.shape, weight, self.eps)
        if self.kind == Kind.GROUP_NORM:
            return F.group_norm(x, self.groups, weight, bias, self.epsilon(x))
        mean, variance, momentum = self.running
        return F.instance_norm(x, mean, variance, weight, bias, True, momentum, self.epsilon(x))

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation, each in a shape that broadcasts against `x`; detached, float32 at least."""
        x = wide(x)
        if self.kind in (Kind.LAYER_NORM, Kind.RMS_NORM):
            dims = tuple(range(x.dim() - len(self.shape), x.dim()))
            if self.kind == Kind.RMS_NORM:
                return torch.zeros_like(x[..., :1]), (x.square().mean(dims, keepdim=True) + self.epsilon(x)).rsqrt()
            variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        else:
            batch, channels = x.shape[:2]
            groups = self.groups if self.kind == Kind.GROUP_NORM else channels
            variance, mean = torch.var_mean(x.reshape(batch, groups, -1), 2, correction=0, keepdim=True)
            each = (batch, channels, *(1,) * (x.dim() - 2))
            variance, mean = (t.expand(batch, groups, channels // groups).reshape(each) for t in (variance, mean))
        return mean, (variance + self.epsilon(x)).rsqrt()

    def affine(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rate: Tensor) -> Tensor:
        """The normalisation with given statistics: affine in `x`.

        Args:
            x: The input.
            weight: Its weight, or None.
            bias: Its bias, or None.
            mean: As `statistics` returns it.
            rate: Likewise, 1 / standard deviation.
        """
        out = (x - mean.to(x.dtype)) * rate.to(x.dtype)
        if weight is not None:
            out = out * self.spread(weight, x)
        return out if bias is None else out + self.spread(bias, x)

    def spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        """A weight or bias in a shape that broadcasts against `x`."""
        if self.kind in (Kind.LAYER_NORM, Kind.RMS_NORM):
            return parameter
        return parameter.view(-1, *(1,) * (x.dim() - 2))

    def epsilon(self, x: Tensor) -> float:
        """What is added to the variance of `x`."""
        return torch.finfo(x.dtype).eps if self.eps is None else self.eps


class _HeldNorm(torch.autograd.Function):
    """The normalisation forward; backward, with its statistics constant."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, mix: float, match: bool
    ) -> Tensor:
        ctx.norm, ctx.mix, ctx.match = norm, mix, match
        ctx.biased = None if bias is None else bias.dtype
        if norm.kind != Kind.LAYER_NORM or autocasts(x):
            ctx.save_for_backward(x, weight)
            return norm.run(x, weight, bias)
        # What layer_norm calls, which returns the statistics too.
        out, mean, rate = torch.native_layer_norm(x, norm.shape, weight, bias, norm.epsilon(x))
        ctx.save_for_backward(x, weight, mean, rate)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *statistics = ctx.saved_tensors
        norm: Norm = ctx.norm
        mean, rate = statistics or norm.statistics(x)
        found: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            weighted = grad if weight is None else grad * norm.spread(weight.detach(), x).to(grad.dtype)
            held = (weighted * rate.to(grad.dtype)).to(x.dtype)
            if ctx.mix != 1 or ctx.match:
                true = _true(weighted, wide(x), mean, rate, norm).to(x.dtype)
                held = torch.lerp(true, held, ctx.mix) if ctx.mix != 1 else held
                held = matched(held, true.detach()) if ctx.match else held
            found[0] = held
        if statistics and weight is not None and ctx.needs_input_grad[1]:  # weight and bias by the kernel, in one pass
            read = (x.detach(), norm.shape, mean, rate, weight, weight)  # of the bias it reads the shape alone
            found[1:] = torch.ops.aten.native_layer_norm_backward(grad.to(x.dtype), *read, [False, True, True])[1:]
            return (*found[:2], found[2] if ctx.needs_input_grad[2] else None, None, None, None)
        if ctx.needs_input_grad[1]:
            found[1] = _gathered(grad * ((wide(x) - mean) * rate).to(grad.dtype), weight, norm)
        if ctx.needs_input_grad[2]:
            found[2] = _gathered(grad, weight if weight is not None else torch.empty(0), norm).to(ctx.biased)
        return (*found, None, None, None)


def _true(weighted: Tensor, x: Tensor, mean: Tensor, rate: Tensor, norm: Norm) -> Tensor:
    """The true gradient: (g - mean(g) - x_hat mean(g x_hat)) / std, of RMSNorm without the first mean."""
    normalised, grad = (x - mean) * rate, weighted.to(x.dtype)

    def averaged(t: Tensor) -> Tensor:
        return _mean_like(t, norm)

    centred = 0 if norm.kind == Kind.RMS_NORM else averaged(grad)
    return (grad - centred - normalised * averaged(grad * normalised)) * rate


def _mean_like(t: Tensor, norm: Norm) -> Tensor:
    """The mean over what is normalised together, in a shape that broadcasts against `t`."""
    if norm.kind in (Kind.LAYER_NORM, Kind.RMS_NORM):
        return t.mean(tuple(range(t.dim() - len(norm.shape), t.dim())), keepdim=True)
    batch, channels = t.shape[:2]
    groups = norm.groups if norm.kind == Kind.GROUP_NORM else channels
    each = t.reshape(batch, groups, -1).mean(2, keepdim=True).expand(batch, groups, channels // groups)
    return each.reshape(batch, channels, *(1,) * (t.dim() - 2))


def _gathered(t: Tensor, parameter: Tensor, norm: Norm) -> Tensor:
    """The sum of a gradient over all that a weight or bias is spread over."""
    if norm.kind in (Kind.LAYER_NORM, Kind.RMS_NORM):
        return t.sum(tuple(range(t.dim() - len(norm.shape)))).to(parameter.dtype)
    return t.sum(tuple(d for d in range(t.dim()) if d != 1)).to(parameter.dtype)


def held_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, mix: float = 1.0, match: bool = False
) -> Tensor:
    """A normalisation forward; backward with mean and standard deviation constant.

    Args:
        x: The input, as the function of `norm` takes it.
        weight: Its weight, or None.
        bias: Its bias, or None.
        norm: The normalisation.
        mix: Share of the rule in the gradient to `x`; the rest, 1 - mix, is the true gradient.
        match: Rescale each example's gradient to the norm of its true gradient.

    Returns:
        What the function returns, bit for bit.

    Raises:
        SoftgateError: For `match` within a transform of torch.func.
    """
    if not in_transforms():
        out: Tensor = _HeldNorm.apply(x, weight, bias, norm, mix, match)
        return out
    if match:
        raise SoftgateError("surrogate.gain=matched: normalisations have no matched gradient within torch.func.")
    value, (mean, rate) = norm.run(x, weight, bias), norm.statistics(x)
    return injected(value, mixed(norm.affine(x, weight, bias, mean, rate), value, mix))


def mixed(surrogate: Tensor, true: Tensor, mix: float) -> Tensor:
    """Of whose gradient `mix` is the surrogate's and the rest the true one."""
    return surrogate if mix == 1 else mix * surrogate + (1 - mix) * true
