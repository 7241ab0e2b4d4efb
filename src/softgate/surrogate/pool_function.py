"""Max pooling as an autograd Function: the true forward pass, `SoftPooling` backward, its weights constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate.surrogate.numerics import in_transforms, matched
from softgate.surrogate.soft_pooling import SoftPooling


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
        out = matched(out, hard, batched=x.dim() > 3)
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
