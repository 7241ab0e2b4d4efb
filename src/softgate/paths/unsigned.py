"""The operations that a path kernel knows: what each does with absolute factors and without constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate.errors import SoftgateError
from softgate.paths.scaled import OPERATIONS, VIEWS, Scaled, Work, constant, count, refused, together, trainable

PIECES = (
    "view _unsafe_view _reshape_alias alias detach expand permute transpose t squeeze unsqueeze slice select narrow "
    "split split_with_sizes unsafe_split unsafe_split_with_sizes unbind diagonal unfold"
).split()
"""Operations that give parts of a tensor, without a copy."""

SUMS = (
    "clone contiguous repeat roll flip index index_select gather sum mean cumsum tril triu trace pixel_shuffle "
    "pixel_unshuffle channel_shuffle im2col col2im diag_embed neg "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d "
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d"
).split()
"""Operations whose factors are none of them negative: sums, averages, copies. A negation is one without its sign."""

CREATING = "zeros_like ones_like full_like empty_like rand_like new_zeros new_ones new_full new_empty".split()
"""Operations that ask a tensor for no more than its shape."""


def _pieces(op: Any, x: Scaled, *args: Any, **kwargs: Any) -> Any:
    out = op(x.value, *args, **kwargs)
    return type(out)(map(x.part, out)) if isinstance(out, (tuple, list)) else x.part(out)


def _sum(op: Any, x: Scaled, *args: Any, dtype: Any = None, **kwargs: Any) -> Scaled:
    if not isinstance(x, Scaled) or count(args, list(kwargs.values())):
        raise refused(str(op.__name__))
    return x.like(x.value.clone() if op is torch.ops.aten.neg else op(x.value, *args, **kwargs))


def _averaged(op: Any, x: Scaled, *args: Any) -> Scaled:
    divisor = args[5] if len(args) > 5 else None
    args = args if divisor is None else (*args[:5], abs(divisor))
    return _sum(op, x, *args)


def _created(op: Any, x: Scaled, *args: Any, **kwargs: Any) -> Tensor:
    out: Tensor = op(x.value, *args, **kwargs)
    return out


def _cast(op: Any, x: Scaled, *args: Any, dtype: Any = None, **kwargs: Any) -> Scaled:
    return x.like(op(x.value, **kwargs))  # to another device; values stay float64


def _added(op: Any, a: Any, b: Any, alpha: float = 1) -> Scaled:
    (first, second), finish = together((a, b))
    return finish(first + abs(alpha) * second)


def _added_reversed(op: Any, a: Any, b: Any, alpha: float = 1) -> Scaled:
    return _added(op, b, a, alpha=alpha)


def _product(name: str, times: Callable[[Any, Any], Tensor], a: Any, b: Any) -> Scaled:
    """A bilinear operation, of which one factor is a constant."""
    if count(a) and count(b):
        raise SoftgateError(f"paths.kernel: {name}: a product of activations is no sum of paths.")
    if isinstance(a, Scaled):
        return a.like(times(a.value, constant(b)))
    if isinstance(b, Scaled):
        return b.like(times(constant(a), b.value))
    raise refused(name)


def _times(op: Any, a: Any, b: Any) -> Scaled:
    return _product("mul", torch.mul, a, b)


def _divided(op: Any, a: Any, b: Any) -> Scaled:
    if count(b):
        raise SoftgateError("paths.kernel: div: a quotient of activations is no sum of paths.")
    return _product("div", torch.div, a, b)


def _matrix(op: Any, a: Any, b: Any) -> Scaled:
    return _product(op.__name__, op, a, b)


def _matrix_added(op: Any, c: Scaled, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Scaled:
    times: dict[str, Callable[[Any, Any], Tensor]] = {
        "addmm": torch.mm,
        "addmv": torch.mv,
        "baddbmm": torch.bmm,
        "addr": torch.outer,
    }
    times["addbmm"] = lambda a, b: torch.bmm(a, b).sum(0)
    added = _product(op.__name__, times[op.__name__], a, b) if count(a, b) else None
    if added is None:
        shape = op(*(torch.empty(v.shape, device="meta") for v in (c, a, b))).shape
        return c.like((abs(beta) * c.value).expand(shape).clone())
    (first, second), finish = together((c, added))
    return finish(abs(beta) * first + abs(alpha) * second)


def _product_added(op: Any, c: Scaled, a: Any, b: Any, *, value: float = 1) -> Scaled:
    if not count(a, b):
        shape = (c.value + constant(a) + constant(b)).shape
        return c.like(c.value.expand(shape).clone())
    both = _times(op, a, b) if op.__name__ == "addcmul" else _divided(op, a, b)
    return _added(op, c, both, alpha=value)


def _lerp(op: Any, a: Any, b: Any, weight: Any) -> Scaled:
    if count(weight):
        raise SoftgateError("paths.kernel: lerp: a product of activations is no sum of paths.")
    rest = weight if trainable(weight) else 1 - weight
    (first, second), finish = together((a, b))
    return finish(constant(rest) * first + constant(weight) * second)


def _convolution(
    op: Any,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Scaled:
    if not isinstance(input, Scaled) or count(weight):
        raise SoftgateError("paths.kernel: convolution: a product of activations is no sum of paths.")
    x, factors = input.value, constant(weight)
    settings = (stride, padding, dilation, transposed, output_padding)
    if transposed or not trainable(weight):
        return input.like(op(x, factors, None, *settings, groups))
    # Weights are all one, so that all outputs of a group are alike: one of them is computed.
    sums = x.reshape(len(x), groups, -1, *x.shape[2:]).sum(2)
    out = op(sums, factors[:groups, :1].contiguous(), None, *settings, groups)
    return input.like(out.repeat_interleave(weight.shape[0] // groups, 1))


def _batch_norm(op: Any, input: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    if not isinstance(input, Scaled):
        raise refused(op.__name__)
    rest = len(op.default._schema.returns) - 1
    return (input.like(input.value.clone()), *(input.value.new_empty(0) for _ in range(rest)))


def _joined(op: Any, tensors: Any, dim: int = 0) -> Scaled:
    values, finish = together(tensors)
    return finish(op(values, dim))


def _padded(op: Any, x: Scaled, pad: Any, value: float = 0) -> Scaled:
    return x.like(op(x.value, pad))


def _emptied(op: Any, x: Scaled, *args: Any) -> Scaled:
    return x.like(torch.zeros_like(x.value))


def _copied(op: Any, into: Scaled, value: Any, *args: Any) -> Scaled:
    (old, new), finish = together((into, value))
    return finish(new.expand_as(old).clone())


def _put(op: Any, x: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Scaled:
    """Sources added or written at indexes of a dimension."""
    (into, new), finish = together((x, source))
    settings = {"alpha": abs(alpha)} if op is torch.ops.aten.index_add else {}
    return finish(op(into, dim, index, new, **settings))


def _replaced(op: Any, x: Any, source: Any, *args: Any) -> Scaled:
    (into, new), finish = together((x, source))
    return finish(op(into, new, *args))


KNOWN: dict[str, Work] = {
    **dict.fromkeys(PIECES, _pieces),
    **dict.fromkeys(SUMS, _sum),
    **dict.fromkeys(CREATING, _created),
    **dict.fromkeys(("avg_pool2d", "avg_pool3d"), _averaged),
    **dict.fromkeys(("add", "sub"), _added),
    **dict.fromkeys(("mm", "bmm", "mv", "dot"), _matrix),
    **dict.fromkeys(("addmm", "addmv", "baddbmm", "addbmm", "addr"), _matrix_added),
    **dict.fromkeys(("addcmul", "addcdiv"), _product_added),
    **dict.fromkeys(("cat", "stack"), _joined),
    **dict.fromkeys(("zero", "fill"), _emptied),
    **dict.fromkeys(("index_add", "scatter_add"), _put),
    **dict.fromkeys(("slice_scatter", "select_scatter"), _replaced),
    **dict.fromkeys(
        (
            "native_batch_norm",
            "_native_batch_norm_legit_no_training",
            "_batch_norm_no_update",
            "cudnn_batch_norm",
            "miopen_batch_norm",
        ),
        _batch_norm,
    ),
    "_to_copy": _cast,
    "rsub": _added_reversed,
    "mul": _times,
    "div": _divided,
    "lerp": _lerp,
    "convolution": _convolution,
    "constant_pad_nd": _padded,
    "copy": _copied,
}
OPERATIONS |= KNOWN
VIEWS |= set(PIECES)
