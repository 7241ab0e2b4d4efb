"""Tensors with an exponent for each example: numbers like those that sums over all paths of a deep network reach.

The network of all ones multiplies its values by hundreds at each layer; after a hundred layers no float64 holds them. A
`Scaled` tensor is value * exp(log) with one log for each example, the first dimension. It runs through a network's own
forward and does to it what the path kernel asks for: every weight counts as one, every additive constant as zero, and
averages, padding and other operations without weights stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import SoftgateError, require

ADDITIONS = frozenset({torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__})
SUBTRACTIONS = frozenset({torch.sub, torch.subtract, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, torch.rsub})
IN_PLACE = {Tensor.add_: 1, Tensor.__iadd__: 1, Tensor.sub_: -1, Tensor.__isub__: -1}
PRODUCTS = frozenset({torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__})
NORMS = frozenset({F.batch_norm, torch.batch_norm})
CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
JOINTS = frozenset({torch.cat, torch.concat, torch.concatenate})


class Scaled(Tensor):
    """The number value * exp(exponent); see the module.

    Attributes:
        exponent: [B], the exponent of each example.
    """

    exponent: Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ADDITIONS:
            return added(args[0], args[1], float(kwargs.get("alpha", 1)))
        if func in SUBTRACTIONS:
            return added(args[0], args[1], -1.0)  # reversed operands differ by a sign, which every path shares
        if func in IN_PLACE:
            return overwrite(args[0], added(args[0], args[1], IN_PLACE[func] * float(kwargs.get("alpha", 1))))
        if func in PRODUCTS:
            return _times(*args[:2])
        if func in NORMS:
            return args[0]
        if func in CONVOLUTIONS:
            return _convolved(CONVOLUTIONS[func], *args, **kwargs)
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func in JOINTS:
            return _joined(func, *args, **kwargs)
        return _unary(func, args, kwargs)


def scaled(value: Tensor, log: Tensor) -> Scaled:
    """The number value * exp(log), for a value [B, ...] and a log [B]."""
    with torch._C.DisableTorchFunctionSubclass():
        made: Scaled = value.as_subclass(Scaled)
    made.exponent = log
    return made


def value_of(x: Tensor) -> Tensor:
    """The value without its exponent."""
    with torch._C.DisableTorchFunctionSubclass():
        plain: Tensor = x.as_subclass(Tensor)
    return plain


def normalized(value: Tensor, log: Tensor) -> Scaled:
    """The same number with its largest value at 1."""
    most = value.abs().flatten(1).amax(1) if value.numel() else torch.ones_like(log)
    most = torch.where(most > 0, most, torch.ones_like(most))
    return scaled(value / _shaped(most, value), log + most.log())


def overwrite(x: Scaled, result: Scaled) -> Scaled:
    """Puts a result in the place of an operand, as an in-place function does."""
    with torch._C.DisableTorchFunctionSubclass():
        x.data = value_of(result)
    x.exponent = result.exponent
    return x


def added(a: Any, b: Any, factor: float) -> Scaled:
    """The sum a + factor * b; one of the two may be a constant, which is left out."""
    if not isinstance(b, Scaled):
        return a  # type: ignore[no-any-return]  # one of the two is Scaled
    if not isinstance(a, Scaled):
        return b
    log = torch.maximum(a.exponent, b.exponent)
    first, second = (value_of(v) * _shaped((v.exponent - log).exp(), v) for v in (a, b))
    return scaled(first + factor * second, log)


def _shaped(each: Tensor, like: Tensor) -> Tensor:
    return each.view(-1, *[1] * (like.dim() - 1))


def _times(a: Any, b: Any) -> Scaled:
    if isinstance(a, Scaled) and isinstance(b, Scaled):
        raise SoftgateError("paths.kernel: a product of activations is no sum of paths.")
    x, factor = (a, b) if isinstance(a, Scaled) else (b, a)
    if isinstance(factor, Tensor):  # a weight: it counts as one
        return scaled(value_of(x) * torch.ones_like(factor, dtype=torch.float64), x.exponent)
    return scaled(value_of(x) * factor, x.exponent)


def _convolved(
    dims: int,
    input: Scaled,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Scaled:
    """A convolution whose weights are all one: all outputs of a group are alike."""
    x = value_of(input)
    sums = x.reshape(len(x), groups, -1, *x.shape[2:]).sum(2)
    ones = torch.ones(groups, 1, *weight.shape[2:], dtype=x.dtype, device=x.device)
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    out = normalized(convolve(sums, ones, None, stride, padding, dilation, groups), input.exponent)
    each = weight.shape[0] // groups
    plain = value_of(out)
    return scaled(plain.unsqueeze(2).expand(-1, -1, each, *plain.shape[2:]).flatten(1, 2), out.exponent)


def _linear(input: Scaled, weight: Tensor, bias: Tensor | None = None) -> Scaled:
    out = normalized(value_of(input).sum(-1, keepdim=True), input.exponent)
    return scaled(value_of(out).expand(*input.shape[:-1], weight.shape[0]), out.exponent)


def _joined(func: Any, tensors: Any, *args: Any, **kwargs: Any) -> Scaled:
    require(all(isinstance(t, Scaled) for t in tensors), "paths.kernel: a constant is joined to activations.")
    log = torch.stack([t.exponent for t in tensors]).amax(0)
    return scaled(func([value_of(t) * _shaped((t.exponent - log).exp(), t) for t in tensors], *args, **kwargs), log)


def _unary(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation without weights: applied to the value."""
    others = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and not isinstance(v, Scaled)]
    mine = [v for v in (*args, *kwargs.values()) if isinstance(v, Scaled)]
    with torch._C.DisableTorchFunctionSubclass():
        out = func(
            *(value_of(v) if isinstance(v, Scaled) else v for v in args),
            **{key: value_of(v) if isinstance(v, Scaled) else v for key, v in kwargs.items()},
        )
    parts = out if isinstance(out, (tuple, list)) else (out,)
    if not any(isinstance(part, Tensor) for part in parts) or func is Tensor.__repr__:
        return out
    name = getattr(func, "__name__", str(func))
    known = len(mine) == 1 and not others
    known = known and all(isinstance(p, Tensor) and p.dim() > 0 and len(p) == len(mine[0].exponent) for p in parts)
    require(known, f"paths.kernel: {name} is not known to be a sum of paths with weights one.")
    made = [scaled(part, mine[0].exponent) for part in parts]
    return type(out)(made) if isinstance(out, (tuple, list)) else made[0]


def logarithm(x: Scaled) -> tuple[Tensor, Tensor]:
    """Sign, and logarithm of the absolute value, [B], of the mean of each example's values."""
    mean = value_of(x).flatten(1).mean(1)
    return mean.sign(), mean.abs().log() + x.exponent
