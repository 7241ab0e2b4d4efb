"""Which PyTorch functions are call sites: `classify` sorts every function call into what softgate knows of it.

One table for all that reads or gates call sites: rules in force, symbolic traces, given gates, guided backprop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from softgate.sites.calls import ActivationCall, PoolCall, SelectingCall, SiteCall, UnsupportedCall
from softgate.sites.smooth_calls import SMOOTH_SORTERS
from softgate.surrogate import functional
from softgate.surrogate.functional import PiecewiseLinear
from softgate.surrogate.numerics import in_transforms
from softgate.surrogate.selection import Kind

RELU: frozenset[Any] = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
INPLACE: frozenset[Any] = frozenset({F.relu_, torch.relu_, Tensor.relu_, F.hardtanh_, F.leaky_relu_})
HIDDEN_IN_COMPILE: frozenset[Any] = frozenset(
    {
        *(
            torch.relu_,
            F.hardtanh_,
            F.leaky_relu_,
            F.elu_,
            torch.selu_,
            torch.celu_,
            torch.clamp_,
            torch.clip_,
            torch.clamp_min_,
        ),
        *(torch.maximum, Tensor.maximum, torch.max, Tensor.max),  # whether the other tensor is zero
    }
)
"""Functions that torch.compile runs without asking any mode, or that no one can tell from others there."""

METHODS: frozenset[str] = frozenset(
    "relu relu_ clamp clamp_ clip clip_ clamp_min clamp_min_ maximum max amax prelu".split()
)
"""Tensor methods that may be call sites; a symbolic trace sees them by name only."""

MAX_POOL2D: frozenset[Any] = frozenset({F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d})
ADAPTIVE_MAX_POOL2D: frozenset[Any] = frozenset({F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices})

UNSUPPORTED: dict[Any, str] = {
    getattr(F, name): name.rstrip("_")
    for name in (
        "rrelu rrelu_ hardshrink softshrink glu "
        "adaptive_max_pool1d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d "
        "max_pool1d max_pool3d adaptive_max_pool1d_with_indices "
        "adaptive_max_pool3d_with_indices max_pool1d_with_indices max_pool3d_with_indices"
    ).split()
} | {
    torch.max_pool1d: "max_pool1d",
    torch.max_pool3d: "max_pool3d",
    torch.rrelu: "rrelu",
    torch.adaptive_max_pool1d: "adaptive_max_pool1d",
    torch.rnn_relu: "rnn_relu",
    torch.rnn_relu_cell: "rnn_relu_cell",
}
"""Activations and poolings with gates of their own, for which there is no rule: met in a model, an error."""


def classify(func: Any, args: Any, kwargs: Any) -> SiteCall | SelectingCall | None:
    """What a function call is to softgate; None for one that neither is a call site nor selects data.

    Args:
        func: The function, in the spelling that a `TorchFunctionMode` sees.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    sorter = _SORTERS.get(func)
    if sorter is not None:
        return sorter(func, args, kwargs)
    return _operator(func, args, kwargs) if isinstance(func, OPERATORS) else None


def _activation(kind: Kind, arguments: Callable[..., Any], func: Any, args: Any, kwargs: Any) -> ActivationCall:
    z, inplace, activation, shape = arguments(*args, **kwargs)
    if kind is Kind.HARDTANH and shape.kinks == _RELU6.kinks:  # nn.ReLU6 calls hardtanh
        kind = Kind.RELU6
    return ActivationCall(func, args, kwargs, kind, z, inplace or func in INPLACE, activation, shape)


_RELU6 = PiecewiseLinear(0.0, ((1.0, 0.0), (-1.0, 6.0)), (0.0, 1.0))


def _relu(input: Tensor, inplace: bool = False) -> Any:
    return input, inplace, F.relu, functional.RELU


def _relu6(input: Tensor, inplace: bool = False) -> Any:
    return input, inplace, F.relu6, _RELU6


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    shape = PiecewiseLinear(0.0, ((1.0, float(min_val)), (-1.0, float(max_val))), (0.0, 1.0))
    return input, inplace, partial(F.hardtanh, min_val=min_val, max_val=max_val), shape


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    shape = PiecewiseLinear(float(negative_slope), ((1.0 - float(negative_slope), 0.0),))
    return input, inplace, partial(F.leaky_relu, negative_slope=negative_slope), shape


def _gated_by(func: Any, args: Any, kwargs: Any) -> ActivationCall:
    return ActivationCall(func, args, kwargs, Kind.RELU, args[0], False, F.relu, functional.RELU, by=args[1])


def _max_pool2d(func: Any, args: Any, kwargs: Any) -> PoolCall:
    x, settings, indices = _pool_arguments(*args, **kwargs)
    return PoolCall(func, args, kwargs, Kind.MAX_POOL2D, x, settings, indices or func is F.max_pool2d_with_indices)


def _pool_arguments(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, tuple[Any, ...], bool]:
    return input, (kernel_size, stride, padding, dilation, ceil_mode), return_indices


def _adaptive_max_pool2d(func: Any, args: Any, kwargs: Any) -> PoolCall:
    x, size, indices = _adaptive_arguments(*args, **kwargs)
    indices = indices or func is F.adaptive_max_pool2d_with_indices
    settings: tuple[Any, ...] | None = ()  # a symbol has no size yet; the first forward pass decides
    symbolic: Any = x
    if not isinstance(symbolic, fx.Proxy):
        window = _adaptive_window(x, size)
        settings = None if window is None else (window, window, 0, 1, False)
    return PoolCall(func, args, kwargs, Kind.ADAPTIVE_MAX_POOL2D, x, settings, indices)


def _adaptive_arguments(input: Tensor, output_size: Any, return_indices: bool = False) -> tuple[Tensor, Any, bool]:
    return input, output_size, return_indices


def _adaptive_window(input: Tensor, output_size: Any) -> tuple[int, int] | None:
    """The window, also its stride, of an adaptive max pooling; None where its windows differ in size."""
    wanted = (output_size, output_size) if isinstance(output_size, int) or output_size is None else tuple(output_size)
    sizes = [(have, have if want is None else want) for have, want in zip(input.shape[-2:], wanted, strict=True)]
    if any(have % want for have, want in sizes):
        return None
    (height, out_height), (width, out_width) = sizes
    return height // out_height, width // out_width


def _unsupported(func: Any, args: Any, kwargs: Any) -> UnsupportedCall:
    return UnsupportedCall(func, args, kwargs, UNSUPPORTED[func])


def _selecting(func: Any, args: Any, kwargs: Any) -> SelectingCall:
    return SelectingCall(func, args, kwargs, SELECTING[func])


OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
"""What `torch.ops.aten.relu.default` and `torch.ops.aten.relu` are."""

_PARTS = ("relu", "hardtanh", "threshold", "max_pool", "gelu", "silu", "hardswish", "elu")
"""Parts of the names of other operators that are activations or max poolings."""


def _operator(func: Any, args: Any, kwargs: Any) -> UnsupportedCall | SelectingCall | None:
    """An operator, called past the function of its name, which no rule covers where that function is a call site."""
    space, name = str(func).split(".")[:2]
    known = _BY_NAME.get(name, _BY_NAME.get(name.rstrip("_"))) if space in ("aten", "prims") else None
    if known is not None:
        call = classify(known, args, {"input" if key == "self" else key: value for key, value in kwargs.items()})
    elif "backward" not in name and any(part in name for part in _PARTS):
        call = UnsupportedCall(func, args, kwargs, name)
    else:
        return None
    if isinstance(call, SelectingCall) or call is None:
        return call
    return UnsupportedCall(func, args, kwargs, str(call.kind), f"called as torch.ops.{space}.{name}")


SELECTING: dict[Any, str] = {}
"""Functions that select or gate data, or bend it, with a gradient of their own: met in a model, a warning."""
_TENSOR_FUNCTIONS = """
    where maximum minimum max min fmax fmin amax amin aminmax abs abs_ absolute absolute_ topk sort msort kthvalue
    median nanmedian quantile mode cummax cummin sign sgn heaviside tanh tanh_ sigmoid sigmoid_
    clamp clamp_ clip clip_ clamp_min clamp_min_ clamp_max clamp_max_
    threshold threshold_ gt ge lt le greater greater_equal less less_equal __gt__ __ge__ __lt__ __le__
""".split()
for _name in _TENSOR_FUNCTIONS:
    for _place in (torch, Tensor):
        if hasattr(_place, _name):
            SELECTING[getattr(_place, _name)] = _name.strip("_")
_LAYER_FUNCTIONS = """
    softplus hardsigmoid logsigmoid tanhshrink softsign tanh sigmoid gumbel_softmax threshold threshold_
    scaled_dot_product_attention multi_head_attention_forward
""".split()
for _name in _LAYER_FUNCTIONS:
    SELECTING[getattr(F, _name)] = _name.strip("_")
_THRESHOLDS = [function for function, kind in SELECTING.items() if kind == "threshold"]
for _func in UNSUPPORTED:
    SELECTING.pop(_func, None)

COMPARISONS: frozenset[str] = frozenset("gt ge lt le greater greater_equal less less_equal".split())
"""Kinds that a symbolic trace meets in sizes too."""


def _clamp(func: Any, args: Any, kwargs: Any) -> ActivationCall | SelectingCall:
    return _rectifier(func, args, kwargs, *_clamp_arguments(*args, **kwargs))


def _clamp_arguments(input: Tensor, min: Any = None, max: Any = None, **others: Any) -> tuple[Tensor, bool]:
    return input, _is_zero(min) and max is None and not others


def _threshold(func: Any, args: Any, kwargs: Any) -> SiteCall | SelectingCall:
    z, rectifies, inplace = _threshold_arguments(*args, **kwargs)
    if not rectifies:
        return UnsupportedCall(func, args, kwargs, "threshold")
    return _rectifier(func, args, kwargs, z, True, inplace, clamps=False)


def _threshold_arguments(input: Tensor, threshold: Any, value: Any, inplace: bool = False) -> tuple[Tensor, bool, bool]:
    return input, _is_zero(threshold) and _is_zero(value), inplace


def _rectifier(
    func: Any,
    args: Any,
    kwargs: Any,
    z: Tensor,
    rectifies: bool,
    inplace: bool = False,
    clamps: bool = True,
) -> ActivationCall | SelectingCall:
    """A call that may be a ReLU in another spelling; integers have no gradient and are left alone."""
    whole = isinstance(z, Tensor) and not z.is_floating_point()
    if not rectifies or whole:
        return _selecting(func, args, kwargs)
    activation: Callable[[Tensor], Tensor] = partial(torch.clamp, min=0) if clamps else F.relu
    shape = PiecewiseLinear(0.0, ((1.0, 0.0),), (_clamps_step(),)) if clamps else functional.RELU
    inplace = inplace or func.__name__.endswith("_")
    return ActivationCall(func, args, kwargs, Kind.RELU, z, inplace, activation, shape)


def hidden_in_compile(call: ActivationCall) -> bool:
    """Whether torch.compile would run a call with its true gradient, unnoticed."""
    return call.func in HIDDEN_IN_COMPILE or (call.inplace and call.func in _THRESHOLDS)


def _same(tensor: Tensor) -> Tensor:
    return tensor


_STEPS: list[float] = []  # of `_clamps_step`; a compiled pass reads it, as it could not a cached function's result


def _clamps_step() -> float:
    """The gradient of clamp(min=0) at zero, which is not the same in all versions of PyTorch."""
    if not _STEPS:
        # A checkpoint around the call must not count what is saved here: nothing will be when it is run again.
        with torch.enable_grad(), torch.inference_mode(False), saved_tensors_hooks(_same, _same):
            zero = torch.zeros((), requires_grad=True)
            _STEPS.append(float(torch.autograd.grad(torch.clamp(zero, min=0), zero)[0]))
    return _STEPS[0]


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def _max(func: Any, args: Any, kwargs: Any) -> SiteCall | SelectingCall:
    """torch.max and Tensor.max: over all, over one dimension, or of two tensors."""
    other = args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("dim"))
    if isinstance(other, (Tensor, fx.Proxy, fx.Node)):
        return _maximum(func, args, kwargs)
    return _amax(func, args, kwargs, indices=True)


def _maximum(func: Any, args: Any, kwargs: Any) -> ActivationCall | SelectingCall:
    """The larger of two tensors, which is a ReLU where one of them is zero."""
    pair = (*args, *(kwargs[name] for name in ("input", "other") if name in kwargs))
    for z, other in (pair, pair[::-1]) if len(pair) == 2 else ():
        if _are_zeros(other) and _like(other, z):
            shape = PiecewiseLinear(0.0, ((1.0, 0.0),), (0.5,))
            activation = partial(torch.maximum, other=other)
            return ActivationCall(func, args, kwargs, Kind.RELU, z, False, activation, shape)
    return _selecting(func, args, kwargs)


def _are_zeros(value: Any) -> bool:
    """Whether a tensor is a constant that is zero everywhere; a compiled pass cannot look, nor can a transform."""
    if isinstance(value, (fx.Proxy, fx.Node)):
        node = value.node if isinstance(value, fx.Proxy) else value
        return node.target in (torch.zeros_like, torch.zeros, "new_zeros")
    plain = isinstance(value, Tensor) and not value.requires_grad and value.device.type != "meta"
    if not plain or torch.compiler.is_compiling() or in_transforms():
        return False
    return not bool(value.any())


def _like(zeros: Any, z: Any) -> bool:
    """Whether the larger of both has the shape and the dtype of z."""
    if not isinstance(z, Tensor) or not isinstance(zeros, Tensor):
        return True  # symbols; the first forward pass decides
    fits = len(zeros.shape) <= len(z.shape) and torch.broadcast_shapes(zeros.shape, z.shape) == z.shape  # type: ignore[no-untyped-call]  # torch's is untyped
    return z.is_floating_point() and fits and torch.result_type(z, zeros) == z.dtype


def _amax(func: Any, args: Any, kwargs: Any, indices: bool = False) -> PoolCall | SelectingCall:
    """A maximum over all of some spatial dimensions: those behind the first two."""
    x, dims, keepdim = _amax_arguments(*args, **kwargs)
    if dims is None:
        return _selecting(func, args, kwargs)
    if not isinstance(x, Tensor):
        fits = all(dim >= 2 or dim in (-1, -2) for dim in dims)
        return PoolCall(func, args, kwargs, Kind.AMAX, x, (), indices) if fits else _selecting(func, args, kwargs)
    ordered = sorted({dim % x.dim() for dim in dims}) if x.dim() else []
    if not ordered or ordered[0] < 2 or not x.is_floating_point() or not x.numel():
        return _selecting(func, args, kwargs)
    kept = [dim for dim in range(x.dim()) if dim not in ordered]
    sizes = [1 if dim in ordered else x.shape[dim] for dim in range(x.dim()) if keepdim or dim not in ordered]
    planes = x.permute(*kept, *ordered).flatten(len(kept)).flatten(1, len(kept) - 1).unsqueeze(-1)
    settings = ((planes.shape[-2], 1), None, 0, 1, False)
    return PoolCall(func, args, kwargs, Kind.AMAX, planes, settings, indices, tuple(sizes))


def _amax_arguments(input: Tensor, dim: Any = None, keepdim: bool = False, **others: Any) -> Any:
    dims = (dim,) if isinstance(dim, int) and not isinstance(dim, bool) else dim
    fine = isinstance(dims, (tuple, list)) and len(dims) > 0 and all(isinstance(each, int) for each in dims)
    return input, (tuple(dims) if fine and not others else None), keepdim


_SORTERS: dict[Any, Callable[[Any, Any, Any], SiteCall | SelectingCall]] = {
    **dict.fromkeys(SELECTING, _selecting),
    **dict.fromkeys((torch.clamp, torch.clamp_, torch.clip, torch.clip_, torch.clamp_min, torch.clamp_min_), _clamp),
    **dict.fromkeys((Tensor.clamp, Tensor.clamp_, Tensor.clip, Tensor.clip_), _clamp),
    **dict.fromkeys((Tensor.clamp_min, Tensor.clamp_min_), _clamp),
    **dict.fromkeys(_THRESHOLDS, _threshold),
    **dict.fromkeys((torch.maximum, Tensor.maximum), _maximum),
    **dict.fromkeys((torch.max, Tensor.max), _max),
    **dict.fromkeys((torch.amax, Tensor.amax), _amax),
    **dict.fromkeys(RELU, partial(_activation, Kind.RELU, _relu)),
    functional.gated_by: _gated_by,
    F.relu6: partial(_activation, Kind.RELU6, _relu6),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), partial(_activation, Kind.HARDTANH, _hardtanh)),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), partial(_activation, Kind.LEAKY_RELU, _leaky_relu)),
    **dict.fromkeys(MAX_POOL2D, _max_pool2d),
    **dict.fromkeys(ADAPTIVE_MAX_POOL2D, _adaptive_max_pool2d),
    **dict.fromkeys(UNSUPPORTED, _unsupported),
    **SMOOTH_SORTERS,
}

_BY_NAME: dict[str, Any] = {getattr(func, "__name__", ""): func for func in _SORTERS}
"""The functions by the names that operators have too."""
