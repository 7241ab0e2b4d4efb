"""Which PyTorch functions are call sites, which are refused by name, and what an autograd graph betrays.

Tables for `softgate.sites`, which does the attaching.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from softgate.surrogate import functional
from softgate.surrogate.functional import PiecewiseLinear

RELU: frozenset[Any] = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
INPLACE: frozenset[Any] = frozenset({F.relu_, torch.relu_, Tensor.relu_, F.hardtanh_, F.leaky_relu_})
HIDDEN_IN_COMPILE: frozenset[Any] = frozenset({torch.relu_, F.hardtanh_, F.leaky_relu_})
"""In-place functions that torch.compile runs without asking any mode."""

METHODS: dict[str, bool] = {"relu": False, "relu_": True}
"""Tensor methods that are call sites, and whether they work in place; a symbolic trace sees them by name only."""

MAX_POOL2D: frozenset[Any] = frozenset({F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d})
ADAPTIVE_MAX_POOL2D: frozenset[Any] = frozenset({F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices})

PIECEWISE: dict[Any, str] = {
    F.relu6: "relu6",
    F.hardtanh: "hardtanh",
    F.hardtanh_: "hardtanh",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
}
"""Piecewise linear activations besides ReLU; each of their kinks gets the gate of the rule."""

UNSUPPORTED: dict[Any, str] = {
    getattr(F, name): name.rstrip("_")
    for name in (
        "prelu rrelu rrelu_ elu elu_ selu selu_ celu celu_ gelu silu mish hardswish "
        "hardshrink softshrink threshold threshold_ glu "
        "adaptive_max_pool1d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d "
        "max_pool1d max_pool3d adaptive_max_pool1d_with_indices "
        "adaptive_max_pool3d_with_indices max_pool1d_with_indices max_pool3d_with_indices"
    ).split()
} | {
    torch.max_pool1d: "max_pool1d",
    torch.max_pool3d: "max_pool3d",
    torch.prelu: "prelu",
    torch.rrelu: "rrelu",
    torch.selu: "selu",
    torch.celu: "celu",
    torch.threshold: "threshold",
    torch.adaptive_max_pool1d: "adaptive_max_pool1d",
    Tensor.prelu: "prelu",
}
"""Activations and poolings with gates of their own, for which there is no rule: met in a model, an error."""


@dataclass(frozen=True)
class ActivationCall:
    """A call of an activation, its arguments sorted; `activation` does not work in place."""

    kind: str
    z: Tensor
    inplace: bool
    activation: Any
    shape: PiecewiseLinear


def activation_call(func: Any, args: Any, kwargs: Any) -> ActivationCall:
    """Sorts the arguments of a function in `RELU` or `PIECEWISE`."""
    call = _SORTERS[PIECEWISE.get(func, "relu")](*args, **kwargs)
    return replace(call, inplace=True) if func in INPLACE else call


def _relu(input: Tensor, inplace: bool = False) -> ActivationCall:
    return ActivationCall("relu", input, inplace, F.relu, functional.RELU)


def _relu6(input: Tensor, inplace: bool = False) -> ActivationCall:
    return ActivationCall("relu6", input, inplace, F.relu6, PiecewiseLinear(0.0, ((1.0, 0.0), (-1.0, 6.0))))


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> ActivationCall:
    shape = PiecewiseLinear(0.0, ((1.0, float(min_val)), (-1.0, float(max_val))))
    kind = "relu6" if (min_val, max_val) == (0, 6) else "hardtanh"  # nn.ReLU6 calls hardtanh
    return ActivationCall(kind, input, inplace, partial(F.hardtanh, min_val=min_val, max_val=max_val), shape)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> ActivationCall:
    shape = PiecewiseLinear(float(negative_slope), ((1.0 - float(negative_slope), 0.0),))
    return ActivationCall("leaky_relu", input, inplace, partial(F.leaky_relu, negative_slope=negative_slope), shape)


_SORTERS: dict[str, Callable[..., ActivationCall]] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
}


def adaptive_max_pool2d_arguments(
    func: Any, input: Tensor, output_size: Any, return_indices: bool = False
) -> tuple[Any, Any, bool]:
    """Sorts the arguments of any adaptive max pooling: input, output size, whether indices are returned."""
    return input, output_size, return_indices or func is F.adaptive_max_pool2d_with_indices


def adaptive_max_pool2d_window(input: Tensor, output_size: Any) -> tuple[int, int] | None:
    """The window, also its stride, of an adaptive max pooling; None where its windows differ in size."""
    wanted = (output_size, output_size) if isinstance(output_size, int) or output_size is None else tuple(output_size)
    sizes = [(have, have if want is None else want) for have, want in zip(input.shape[-2:], wanted, strict=True)]
    if any(have % want for have, want in sizes):
        return None
    (height, out_height), (width, out_width) = sizes
    return height // out_height, width // out_width


def max_pool2d_arguments(
    func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, tuple[Any, ...], bool]:
    """Sorts the arguments of any max-pool function: input, the five settings, whether indices are returned."""
    indices = return_indices or func is F.max_pool2d_with_indices
    return input, (kernel_size, stride, padding, dilation, ceil_mode), indices


@dataclass
class Call:
    """One call site as a trace sees it; `node` is None where the call was not symbolic."""

    name: str
    kind: str
    covered: bool
    inplace: bool
    node: fx.Node | None
